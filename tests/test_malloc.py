"""Commands that compute keep the memory they free; convert does not, nor where a user has settings."""

import os
import subprocess
import sys
import textwrap

import pytest

from gist_jax import malloc

# Bytes in use after an array of 80 MB was freed, above those before.
MEASURED = """
import resource
import numpy as np

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

before = resident()
np.ones(10_000_000)
print(resident() - before)
"""
# The same in a process that takes itself for a command's.
SCRIPT = f"""
import sys
sys.orig_argv = ["python", "-m", sys.argv[1]]
import gist_jax
assert "jax" not in sys.modules and "numpy" not in sys.modules
{MEASURED}
"""


def keeps_memory(module: str, **environment: str) -> bool:
    """Whether the process of a command keeps what it freed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    own |= {"JAX_PLATFORMS": "cpu"} | environment
    command = [sys.executable, "-c", SCRIPT, module]
    found = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
    return int(found.stdout) > 70e6


@pytest.mark.parametrize("module", ["gist_jax.train", "gist_jax.benchmark.against_transformers"])
def test_commands_keep_freed_memory(module):
    assert keeps_memory(module)


@pytest.mark.parametrize(
    ("module", "environment"),
    [
        ("gist_jax.convert", {}),
        ("pytest", {}),
        ("gist_jax.train", {"MALLOC_TRIM_THRESHOLD_": "131072"}),
        ("gist_jax.train", {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}),
    ],
)
def test_others_do_not(module, environment):
    assert not keeps_memory(module, **environment)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-m gist_jax.train --config=x", True),
        ("-u -X importtime -mgist_jax.benchmark --help", True),
        ("script.py -m gist_jax.train", False),
        ("-c code -m gist_jax.train", False),
        ("-m", False),
        ("", False),
    ],
)
def test_what_runs(arguments, expected):
    assert malloc.runs_command(["python", *arguments.split()]) == expected


def test_a_command_has_it_set(tmp_path):
    """In its own process, measured when it ends."""
    code = (
        f"def measure():\n{textwrap.indent(MEASURED, '    ')}\nimport atexit; atexit.register(measure)"
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    own |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path)}
    for name, kept in [("generate", True), ("convert", False)]:
        command = [sys.executable, "-m", f"gist_jax.{name}", "--help"]
        found = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
        assert (int(found.stdout.split()[-1]) > 70e6) == kept


def test_beside_an_accelerator_nothing_is_set(monkeypatch, tmp_path):
    monkeypatch.setattr(malloc, "ACCELERATORS", (f"{tmp_path}/nvidia[0-9]*",))
    assert malloc.computes_on_cpu({})
    (tmp_path / "nvidia0").touch()
    assert not malloc.computes_on_cpu({})
    assert malloc.computes_on_cpu({"JAX_PLATFORMS": "cpu"})
