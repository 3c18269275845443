"""Compiled programs are kept on disk: a second start compiles nothing, and no trouble is heard of."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from gist_jax import compilation_cache

# Alone, without the package: what it imports takes longer than the test.
SCRIPT = """
import collections, json, resource, runpy, sys
import jax
import jax.numpy as jnp

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), -1))
for name, value in json.loads(sys.argv[2]).items():
    jax.config.update(name, value)
runpy.run_path(sys.argv[1])["use_compilation_cache"]()

count = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: count.update([event]))
jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: count.update([event]))

@jax.jit
def plain(x):
    return jnp.sin(x @ x)

@jax.jit
def donating(x):
    return x * 2 + 1
donating = jax.jit(donating, donate_argnums=0)

given = plain(jnp.arange(16.0).reshape(4, 4))
result = donating(given)
print(json.dumps({
    # Those asked for count what was not written, too: a miss is an event only where an entry is made.
    "programs": count["/jax/core/compile/backend_compile_duration"],
    "asked": count["/jax/compilation_cache/compile_requests_use_cache"],
    "hits": count["/jax/compilation_cache/cache_hits"],
    "misses": count["/jax/compilation_cache/cache_misses"],
    "donated": given.is_deleted(),
    "result": result.tolist(),
    "settings": {name: getattr(jax.config, name) for name in json.loads(sys.argv[3])},
}))
"""
SETTINGS = {
    "jax_compilation_cache_dir": None,
    "jax_compilation_cache_max_size": -1,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
    "jax_persistent_cache_enable_xla_caches": "xla_gpu_per_fusion_autotune_cache_dir",
}  # as they are by default


def start(cache: pathlib.Path, *, config: dict | None = None, limit: int = -1, **environment) -> dict:
    """What a process finds whose cache folder is `cache`; it must not say anything.

    Args:
      config: what is in jax.config before.
      limit: bytes of a file beyond which a write fails as it does on a full disk; -1: none.
    """
    settings = json.dumps(config or {}), json.dumps([*SETTINGS])
    arguments = compilation_cache.__file__, *settings, str(limit)
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=environment_of(cache) | environment,
        capture_output=True,
        text=True,
    )
    assert found.stderr == ""
    return json.loads(found.stdout)


def environment_of(cache: pathlib.Path) -> dict[str, str]:
    """The environment of a process whose user has set nothing but the cache folder."""
    # Nor is such a process measured by coverage, which would write to a disk that is full.
    not_his = "JAX_COMPILATION_", "JAX_PERSISTENT_", "JAX_ENABLE_COMPILATION_", "COVERAGE_"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(not_his)}
    # XLA's own lines, about processors, cannot be silenced after it is loaded.
    ours = {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return inherited | ours


def entries(cache: pathlib.Path) -> list[pathlib.Path]:
    return sorted(cache.glob("gist_jax/programs/*/*-cache"))


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> tuple[pathlib.Path, dict, dict]:
    """A cache folder, and what two processes found that used it one after the other."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, start(cache), start(cache)


def test_second_start_compiles_nothing(starts):
    cache, first, second = starts
    assert first["hits"] == 0 and first["misses"] == first["asked"] == first["programs"] > 2
    assert second["misses"] == 0 and second["hits"] == second["asked"] == second["programs"]
    assert len(entries(cache)) == first["programs"] == second["programs"]
    assert any(entry.name.startswith("jit_donating-") for entry in entries(cache))
    assert first["donated"] and second["donated"]
    assert first["result"] == second["result"]


COMMAND = """
import collections, runpy, sys
import jax

count = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: count.update([event.rsplit("/")[-1]]))
sys.argv = ["compress", *sys.argv[1:]]
runpy.run_module("gist_jax.compress", run_name="__main__")
print(count["cache_hits"], count["cache_misses"], count["compile_requests_use_cache"])
"""


def test_second_start_of_a_command_compiles_nothing(tmp_path):
    """Reading a checkpoint, which gives arrays away to programs that write to them, included."""
    model = pathlib.Path(__file__).parent / "examples" / "llama" / "export"
    arguments = f"--model={model}", "--instruction=Say red.", f"--output={tmp_path / 'x'}"
    counts = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            env=environment_of(tmp_path),
            capture_output=True,
            text=True,
            check=True,
        )
        counts.append([int(x) for x in done.stdout.split()[-3:]])
    (_, missed, asked), (hits, missed_again, asked_again) = counts
    assert missed > 5 and asked == asked_again
    assert missed_again == 0 and hits == asked_again
    assert any(entry.name.startswith("jit__put-") for entry in entries(tmp_path))  # donates


def test_settings(starts):
    cache, first, _ = starts
    (folder,) = cache.glob("gist_jax/programs/*")
    assert first["settings"] == {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": 2**30,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("by_environment", [True, False])
def test_folder_of_the_users_own(tmp_path, by_environment):
    """Nothing is set beside it: a bound would remove what the user keeps there."""
    own = {"jax_compilation_cache_dir": str(tmp_path / "own")}
    if by_environment:
        found = start(tmp_path / "cache", **{name.upper(): value for name, value in own.items()})
    else:
        found = start(tmp_path / "cache", config=own)
    assert found["settings"] == SETTINGS | own
    assert not (tmp_path / "cache").exists()


def test_disabled_by_the_user(tmp_path):
    found = start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert found["settings"] == SETTINGS
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "simulated",
    [{"JAX_NUM_CPU_DEVICES": "2"}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}],
    ids=lambda x: [*x][0],
)
def test_not_with_simulated_devices(tmp_path, simulated):
    """Their programs, read back, have been seen to wait for each other for ever."""
    found = start(tmp_path, **simulated)
    assert found["settings"] == SETTINGS
    assert not [*tmp_path.iterdir()]


def test_bound(starts, tmp_path):
    """The user's, below what all programs need; a setting that they made to the default stands too."""
    bound = sum(entry.stat().st_size for entry in entries(starts[0])) - 1
    xla = "jax_persistent_cache_enable_xla_caches"
    own = {"jax_compilation_cache_max_size": bound, xla: SETTINGS[xla]}
    found = start(tmp_path, **{name.upper(): str(value) for name, value in own.items()})
    assert found["settings"] == starts[1]["settings"] | own | {
        "jax_compilation_cache_dir": str(entries(tmp_path)[0].parent)
    }
    assert sum(entry.stat().st_size for entry in entries(tmp_path)) <= bound
    assert 0 < len(entries(tmp_path)) < found["misses"] == found["programs"]
    assert any(entry.name.startswith("jit_donating-") for entry in entries(tmp_path))  # the last


def test_damaged_entries(starts, tmp_path):
    cache, first, _ = starts
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    for entry in entries(tmp_path):
        entry.write_bytes(entry.read_bytes()[:-100])
    found = start(tmp_path)
    assert found["hits"] == 0 and found["result"] == first["result"]


def test_no_folder(starts, tmp_path):
    (tmp_path / "file").touch()
    found = start(tmp_path / "file")
    assert found["settings"] == SETTINGS and found["result"] == starts[1]["result"]


def test_full_disk(starts, tmp_path):
    """What was begun there is written anew when there is room again, and so is the rest."""
    found = start(tmp_path, limit=1000)
    assert found["hits"] == 0 and found["result"] == starts[1]["result"]
    assert entries(tmp_path)
    found = start(tmp_path)
    assert found["hits"] == 0 and found["result"] == starts[1]["result"]
    found = start(tmp_path)
    assert found["hits"] == found["programs"] and found["result"] == starts[1]["result"]


def test_number_of_entries(tmp_path, monkeypatch):
    """The least lately used go."""
    monkeypatch.setattr(compilation_cache, "_MAX_ENTRIES", 2)
    for name, time in {"a": 3, "b": 1, "c": 2, "unfinished": None}.items():
        (tmp_path / f"{name}-cache").touch()
        if time:
            (tmp_path / f"{name}-atime").touch()
            os.utime(tmp_path / f"{name}-atime", (time, time))
    compilation_cache._tidy(tmp_path)
    assert {x.name for x in tmp_path.iterdir()} == {"a-cache", "a-atime", "c-cache", "c-atime"}


def test_processors_have_folders_of_their_own(monkeypatch):
    folder = compilation_cache._folder()
    assert folder == compilation_cache._folder()
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "another")
    assert folder != compilation_cache._folder() and folder.parent == compilation_cache._folder().parent
