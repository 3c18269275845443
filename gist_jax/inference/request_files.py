"""Requests of a file, answered into a file: made in blocks, so that a command that was stopped resumes.

A record of the file is a request: its fields are those of `Request`, and others are kept. What comes out
is the record with its output, in the same order:

    {"input": "tea cup", "gist": "count"}
    {"input": "tea cup", "gist": "count", "output": "2", "reason": "eos"}
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from gist_jax.data.files import SUFFIXES, read_records
from gist_jax.errors import UserError, shortened
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.requests import Request, Result, answer
from gist_jax.io import atomic_write, write_csv
from gist_jax.parts import Parts

BLOCK = 1024  # requests; each block is made alone, so that its outputs do not depend on the others
STANDARD = "-"  # in place of a file: standard input or output

Record = dict[str, Any]


def answer_file(
    lm: LanguageModel,
    inputs: str,
    output: pathlib.Path,
    default: Request,
    *,
    slots: int,
    library: Mapping[str, GistCache],
    made_of: Mapping[str, Any],
) -> str:
    """Answers the requests of a file.

    Args:
      inputs: JSON, JSON lines, CSV or parquet.
      output: JSON lines, CSV or parquet, by its suffix.
      default: what a record does not say.
      made_of: what the outputs depend on besides the model and the file.

    Returns:
      A line that says how many there are.

    Raises:
      UserError: if the file cannot be read, or a part was made of something else.
    """
    if output.suffix not in SUFFIXES:
        raise UserError(f"{output} must end with one of {', '.join(SUFFIXES)}")
    records, parts = read_records(inputs), Parts(output)
    digest = hashlib.sha256(pathlib.Path(inputs).read_bytes()).hexdigest()
    parts.begin({**made_of, "model": lm.origin.base, "inputs": digest, "requests of a block": BLOCK})
    starts = range(0, len(records), BLOCK)
    left = [start for start in starts if not parts.path(_name(start)).exists()]
    total = sum(len(records[start : start + BLOCK]) for start in left)
    with tqdm(total=total, desc="generating", unit="request") as bar:
        for start in left:
            block = records[start : start + BLOCK]
            with atomic_write(parts.path(_name(start))) as tmp, tmp.open("w", encoding="utf-8") as file:
                for record in answers(lm, block, default, slots, library, start):
                    file.write(_line(record))
                    bar.update()
    made = [line for start in starts for line in _lines(parts.path(_name(start)))]
    failed = sum("error" in json.loads(line) for line in made)
    with atomic_write(output) as tmp:
        _write(tmp, made)
    parts.remove()
    return f"{output}: {len(made)} outputs" + (f", {failed} of them errors" if failed else "")


def answer_stream(
    lm: LanguageModel, default: Request, *, slots: int, library: Mapping[str, GistCache], output: Any
) -> None:
    """Answers requests of standard input, a JSON record a line, while they come.

    Args:
      output: a text file, into which a line is written as soon as those before it are.
    """
    lines = (line for line in sys.stdin if line.strip())
    for record in answers(lm, map(_parsed, lines), default, slots, library):
        output.write(_line(record))
        output.flush()


def answers(
    lm: LanguageModel,
    records: Iterable[Record | UserError],
    default: Request,
    slots: int,
    library: Mapping[str, GistCache],
    first: int = 0,
) -> Iterator[Record]:
    """The records of requests, in their order, with what came of them.

    Args:
      records: or mistakes in place of some.
      first: the number of the first record.
    """
    asked: dict[int, Record] = {}
    done: dict[int, Record] = {}  # that wait for one before them

    def requests() -> Iterator[Request | UserError]:
        for number, record in enumerate(records, first):
            asked[number] = {} if isinstance(record, UserError) else record
            try:
                yield record if isinstance(record, UserError) else request_of(record, default)
            except UserError as mistake:
                yield mistake

    for result in answer(lm, requests(), slots, library, first):
        done[result.id] = _answered(asked.pop(result.id), result)
        while first in done:
            yield done.pop(first)
            first += 1


def request_of(record: Record, default: Request) -> Request:
    """The request of a record; numbers may be texts, as those of CSV are, and empty ones say nothing.

    Raises:
      UserError: naming a field that has a wrong value.
    """
    given: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        value = record.get(name)
        if value is None or (value == "" and name != "input"):
            continue
        try:
            if kind is str and not isinstance(value, str) or isinstance(value, bool):
                raise ValueError
            given[name] = value if name == "stop" else kind(value)
        except (TypeError, ValueError):
            raise UserError(f"{name} cannot be {shortened(repr(value))}") from None
    if given.keys() & {"gist", "instruction"}:
        given = {"gist": None, "instruction": None, **given}
    return dataclasses.replace(default, **given)


# Fields of a record, and what their values are.
_FIELDS: dict[str, Callable[[Any], Any]] = {
    "input": str,
    "gist": str,
    "instruction": str,
    "max_new_tokens": int,
    "stop": list,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "seed": int,
}


def _answered(record: Record, result: Result) -> Record:
    reference = {"reference": record["output"]} if "output" in record else {}
    made = {**record, **reference, "output": result.text, "reason": result.reason}
    return {**made, "error": result.error} if result.error else made


def _parsed(line: str) -> Record | UserError:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return UserError(f"this is not JSON: {shortened(error)}")
    return record if isinstance(record, dict) else UserError("a request must be an object")


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _lines(path: pathlib.Path) -> list[str]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return list(file)


def _name(start: int) -> str:
    return f"{start:09}.jsonl"


def _write(path: pathlib.Path, lines: list[str]) -> None:
    """Writes JSON lines into a file of the kind that its suffix says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(lines), encoding="utf-8")
        return
    records = [json.loads(line) for line in lines]
    if path.suffix == ".json":
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        write_csv(path, records)
    else:
        import datasets  # takes a second to import

        datasets.Dataset.from_list(records).to_parquet(str(path))
