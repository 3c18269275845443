"""Where examples come from: the embedded corpus, or files of one's own."""

import csv
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, Protocol

from gist_jax.data import instructions
from gist_jax.errors import UserError, shortened

EMBEDDED = "instructions"
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
Example = dict[str, str]  # instruction, input, output


class Examples(Protocol):
    """The examples of a split: a list, or the embedded corpus, which has no slices."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...
    def __iter__(self) -> Iterator[Example]: ...


def load_splits(source: str) -> dict[str, Examples]:
    """Examples by split: "train" and any number of "validation_…".

    Args:
      source: "instructions" for the embedded corpus; a directory with train.json and any
        validation_*.json; or one file, which becomes the train split. See `read_examples` for the
        kinds of files.

    Raises:
      ValueError: if there are no such files or a record is not an example.
    """
    if source == EMBEDDED:
        return {split: instructions.Corpus(split) for split in instructions.SPLITS}
    if not source:
        raise UserError("config.data.source is empty: give a directory or a file of records")
    path = pathlib.Path(source)
    if path.is_file():
        return {"train": read_examples(path)}
    files = [f for f in sorted(path.glob("*")) if f.suffix in SUFFIXES]
    splits: dict[str, pathlib.Path] = {}
    for file in files:
        if file.stem == "train" or file.stem.startswith("validation"):
            if file.stem in splits:
                raise UserError(f"{source} has both {splits[file.stem].name} and {file.name}")
            splits[file.stem] = file
    if not splits:
        raise UserError(
            f"{source} is neither {EMBEDDED!r}, nor a file, nor a directory with train.json or "
            "validation_*.json"
        )
    return {split: read_examples(file) for split, file in splits.items()}


def first(examples: Examples, count: int) -> list[Example]:
    """The first `count` examples, or all if there are fewer. The embedded corpus has no slices."""
    return [examples[i] for i in range(min(count, len(examples)))]


def read_examples(path: str | pathlib.Path) -> list[Example]:
    """Reads records: a JSON list (.json), a record a line (.jsonl), or a table (.csv, .parquet).

    Raises:
      ValueError: naming the first record without instruction or output (input may be missing).
    """
    path = pathlib.Path(path)
    try:
        records = _read_table(path) if path.suffix in (".csv", ".parquet") else _read_json(path)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read examples from {path}: {shortened(error)}") from None
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} must hold a list of records, and at least one")
    return [_checked(record, i, path) for i, record in enumerate(records)]


def _checked(record: Any, number: int, path: pathlib.Path) -> Example:
    """The record with an input; a missing one, or null, is an empty text."""
    problem = None
    if not isinstance(record, dict):
        problem = "must be an object"
    elif not isinstance(record.get("instruction"), str) or not record["instruction"].strip():
        problem = "must have an instruction that is a non-empty text"
    elif not isinstance(record.get("output"), str):
        problem = "must have an output that is a text"
    elif not isinstance(record.get("input") or "", str):
        problem = "has an input that is no text"
    if problem:
        raise UserError(f"record {number} of {path} {problem}")
    return {**record, "input": record.get("input") or ""}


def _read_json(path: pathlib.Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":  # other line separators may stand in texts
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return json.loads(text)


def _read_table(path: pathlib.Path) -> list[Example]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    import datasets  # takes a second to import

    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        except datasets.exceptions.DatasetGenerationError as error:
            raise ValueError(str(error.__cause__ or error)) from None
        return table.to_list()
