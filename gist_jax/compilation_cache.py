"""Keeps compiled programs on disk, so that a command that is started again has none to compile."""

import hashlib
import itertools
import os
import pathlib
import platform
import warnings

import jax
import jaxlib

from gist_jax.io import user_cache

_SIMULATION = "xla_force_host_platform_device_count"  # several devices on one CPU
_MAX_ENTRIES = 1000  # jax looks through all of them at every write: 50 microseconds each
_SETTINGS = {  # what jax has by default, and what it gets here
    # Small programs are many, and together take as long as the large ones.
    "jax_persistent_cache_min_compile_time_secs": (1.0, 0.0),
    "jax_compilation_cache_max_size": (-1, 2**30),
    # Files that XLA writes itself would be beyond the bound.
    "jax_persistent_cache_enable_xla_caches": ("xla_gpu_per_fusion_autotune_cache_dir", "none"),
}


def use_compilation_cache() -> None:
    """Keeps the programs that this process compiles in the user's cache folder, and finds them there.

    What the user set, by JAX's variables in the environment or in jax.config, stands. Where the folder
    or an entry in it cannot be used, programs are compiled and nothing is said.
    """
    if (
        _is_set("jax_compilation_cache_dir", None)
        or not jax.config.values["jax_enable_compilation_cache"]
    ):
        return  # a bound on a folder of the user's own would remove what is kept there
    if jax.config.values["jax_num_cpu_devices"] > 1 or _SIMULATION in os.environ.get("XLA_FLAGS", ""):
        return  # read back, such programs may run their collectives in orders that wait for each other
    try:
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            return
        _tidy(folder)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return
    for failure in "Error (reading|writing) persistent compilation cache", "Cache value for key":
        warnings.filterwarnings("ignore", failure)
    for name, (default, value) in _SETTINGS.items():
        if not _is_set(name, default):
            jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _is_set(name: str, default: object) -> bool:
    """Whether the user set a field of jax.config, be it to what it is by default."""
    return name.upper() in os.environ or getattr(jax.config, name) != default


def _folder() -> pathlib.Path:
    """The folder of this jaxlib and this processor: machines that share a home have one each."""
    processor = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            first = itertools.takewhile(str.strip, file)  # all that is said of the first core
            # Its clock, which is among the rest, changes from start to start.
            processor += "".join(x for x in first if x.startswith(("model", "flags", "CPU", "Features")))
    name = f"{jaxlib.__version__}-{hashlib.sha256(processor.encode()).hexdigest()[:8]}"
    return user_cache() / "programs" / name


def _tidy(folder: pathlib.Path) -> None:
    """Removes the entries that were used least lately, and those whose writing broke off.

    One of the latter, which have no time of use, is enough for jax to write none any more (jax#39880).
    """
    entries = []
    for entry in folder.glob("*-cache"):
        used = entry.with_name(entry.name.removesuffix("cache") + "atime")
        try:
            entries.append((used.stat().st_mtime, entry, used))
        except FileNotFoundError:
            entries.append((0.0, entry, used))
    unfinished = sum(not time for time, *_ in entries)
    for _, *files in sorted(entries)[: max(unfinished, len(entries) - _MAX_ENTRIES)]:
        for file in files:
            file.unlink(missing_ok=True)
