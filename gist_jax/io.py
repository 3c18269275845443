"""Files and directories that appear whole or not at all, and tables as text and as CSV."""

import contextlib
import csv
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gist_jax.errors import UserError, shortened
from gist_jax.storage import as_path, is_bucket

Path = str | pathlib.Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, and renames it to `path` once all was written.

    If the block raises, what it wrote is removed and `path` is as before. Missing parent directories
    are made. The suffix stays the same, for libraries that go by it. For an object of a bucket the path
    is of this machine, and what was written there becomes the object.
    """
    path = as_path(path)
    if is_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            tmp = pathlib.Path(folder, path.name)
            yield tmp
            path.write_bytes(tmp.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[pathlib.Path]:
    """Gives a temporary directory to write into, which becomes `path` when all went well.

    Raises:
      UserError: if there is something at `path` already.
    """
    path = pathlib.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: choose another name for the output")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    tmp = path.absolute().parent / f".{os.getpid()}.{path.name}"
    try:
        tmp.mkdir()
        yield tmp
        if path.exists():
            path.rmdir()
        os.replace(tmp, path)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def user_cache() -> pathlib.Path:
    """The folder for what can be made again: ~/.cache/gist_jax, or in $XDG_CACHE_HOME.

    Raises:
      RuntimeError: if there is no home.
    """
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "gist_jax")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      UserError: if there is none.
    """
    try:
        value = json.loads(as_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {shortened(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return value


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the columns of all of them, whole or not at all."""
    with atomic_write(path) as tmp, tmp.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV file, UTF-8 with or without a byte order mark, by its header.

    A row has None for cells that it lacks, and a list under None for those that it has too many.

    Raises:
      UserError: if there is no such file or it cannot be read.
    """
    csv.field_size_limit(sys.maxsize)  # a text may be long
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {shortened(error)}") from None


def format_table(lines: Sequence[Sequence[str]], left: int = 1, *, markdown: bool = False) -> str:
    """Aligns columns of cells for a terminal, or writes them as a Markdown table.

    Args:
      lines: the first is the header. All have the same number of cells.
      left: so many columns are aligned at the left, the rest at the right.
    """
    if markdown:
        rule = ["---" if i < left else "--:" for i in range(len(lines[0]))]
        return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, lines))
