"""Where examples come from: the embedded corpus, or JSON files of one's own."""

import json
import pathlib
from collections.abc import Sequence

from gist_jax.data import instructions

EMBEDDED = "instructions"
Example = dict[str, str]  # instruction, input, output


def load_splits(source: str) -> dict[str, Sequence[Example]]:
    """Examples by split: "train" and any number of "validation_…".

    Args:
      source: "instructions" for the embedded corpus; a directory with train.json and any
        validation_*.json; or one file, which becomes the train split. Files hold a JSON list of
        records, or one record a line (.jsonl).

    Raises:
      ValueError: if there are no such files or a record is not an example.
    """
    if source == EMBEDDED:
        return {split: instructions.Corpus(split) for split in instructions.SPLITS}
    path = pathlib.Path(source)
    if path.is_file():
        return {"train": read_examples(path)}
    files = [f for f in sorted(path.glob("*")) if f.suffix in (".json", ".jsonl")]
    splits = {f.stem: f for f in files if f.stem == "train" or f.stem.startswith("validation")}
    if not splits:
        raise ValueError(
            f"{source} is neither {EMBEDDED!r}, nor a file, nor a directory with train.json or "
            "validation_*.json"
        )
    return {split: read_examples(file) for split, file in splits.items()}


def read_examples(path: str | pathlib.Path) -> list[Example]:
    """Reads the records of a .json or .jsonl file.

    Raises:
      ValueError: naming the first record without instruction or output (input may be missing).
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            records = json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read examples from {path}: {error}") from None
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path} must hold a list of records, and at least one")
    for i, record in enumerate(records):
        if not isinstance(record, dict) or not (
            isinstance(record.get("instruction"), str)
            and record["instruction"].strip()
            and isinstance(record.get("input", ""), str)
            and isinstance(record.get("output"), str)
        ):
            raise ValueError(
                f"record {i} of {path} must have a non-empty instruction and an output, all texts"
            )
    return [{"input": "", **record} for record in records]
