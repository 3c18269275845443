"""Files and directories that are whole or not there."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from gist_jax.errors import UserError


@contextlib.contextmanager
def whole_file(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path beside `path` to write to, and renames it to `path` once all was written.

    If the block raises, what it wrote is removed and `path` is as before. Missing parent directories
    are made. The suffix stays the same, for libraries that go by it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory beside `path` to write into, which takes its place when all went well.

    Raises:
      UserError: if there is something at `path` already.
    """
    path = pathlib.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: choose another name for the output")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    beside = path.absolute().parent / f".{os.getpid()}.{path.name}"
    try:
        beside.mkdir()
        yield beside
        if path.exists():
            path.rmdir()
        os.replace(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def write_json(path: str | pathlib.Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      UserError: if there is none.
    """
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return value
