"""Records of files: JSON, JSON lines, CSV and parquet."""

import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from gist_jax.errors import UserError, shortened
from gist_jax.io import Path, read_csv

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def read_records(path: Path, kind: str = "") -> list[dict[str, Any]]:
    """Reads a JSON list, a record a line (JSON lines), or a table (CSV, parquet), whole.

    Args:
      kind: json, csv or parquet, whatever the file is named; empty: by its suffix. What is JSON may be
        either a list or a record a line.

    Raises:
      UserError: if the file cannot be read or holds anything but records, and at least one.
    """
    path = pathlib.Path(path)
    kind = kind or path.suffix.removeprefix(".")
    read: Callable[[pathlib.Path], Any]
    read = {"csv": read_csv, "parquet": _read_parquet}.get(kind, _read_json)
    try:
        records = read(path)
    except UserError:
        raise
    except (OSError, RecursionError, ValueError) as error:
        raise UserError(f"cannot read examples from {path}: {shortened(error)}") from None
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} must hold a list of records, and at least one")
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise UserError(f"record {i} of {path} must be an object")
    return records


def _read_json(path: pathlib.Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        try:
            value = json.loads(text)
            # Where the name says nothing, a record alone may be all the lines there are.
            return [value] if isinstance(value, dict) and path.suffix != ".json" else value
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise
    # A record a line; other line separators may stand in texts.
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _read_parquet(path: pathlib.Path) -> list[dict[str, Any]]:
    import datasets  # takes a second to import

    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        except datasets.exceptions.DatasetGenerationError as error:
            raise ValueError(str(error.__cause__ or error)) from None
        return table.to_list()
