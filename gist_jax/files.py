"""Files that are whole or not there, and reading them."""

import contextlib
import json
import os
import pathlib
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
