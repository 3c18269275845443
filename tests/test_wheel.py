"""The package as a wheel: what is in it, and that it runs from any folder."""

import os
import subprocess
import sys
import zipfile

import pytest
from wheels import REPOSITORY, build

import gist_jax

DATA = (".py", ".json", ".css", ".js", ".typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"))


def test_what_is_in_it(wheel):
    """All of the package, and nothing else: its version, and every file that the code reads."""
    assert wheel.name == f"gist_jax-{gist_jax.__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = REPOSITORY / "gist_jax"
    expected = {path.relative_to(REPOSITORY).as_posix() for path in package.rglob("*")}
    assert names == {x for x in expected if x.endswith(DATA) and "__pycache__" not in x}
    for name in ("configs/quickstart.py", "py.typed", "data/instructions/tokenizer.json"):
        assert f"gist_jax/{name}" in names


def test_from_another_folder(wheel, tmp_path):
    """Its commands find the configs there."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    script = (
        "import gist_jax, sys; from gist_jax import cli, train; from importlib import metadata\n"
        "assert gist_jax.__version__ == metadata.version('gist_jax')\n"
        "print(gist_jax.__file__, cli.load_config('quickstart').num_steps)\n"
        "sys.argv[1:] = ['--help']; train.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'site' / 'gist_jax' / '__init__.py'} 1000\n")
    assert "quickstart" in done.stdout and "--workdir" in done.stdout
