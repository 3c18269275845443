"""The package as a wheel."""

import pathlib
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]


def build(folder: pathlib.Path) -> pathlib.Path:
    """A wheel in the folder, made offline, of a copy, by the setuptools that is there."""
    pytest.importorskip("setuptools", "77", reason="wheels are made by setuptools 77 or newer")
    source = folder / "source"
    unneeded = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "gist_jax", source / "gist_jax", ignore=unneeded)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--quiet", "--wheel-dir", str(folder), str(source)], check=True)
    (found,) = folder.glob("*.whl")
    return found
