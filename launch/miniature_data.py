"""The data of launch/miniature.py: what its base reads, and the tasks that are finetuned on."""

import hashlib
import json
import lzma
import pathlib
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from gist_jax.errors import UserError
from gist_jax.io import atomic_directory

Record = dict[str, Any]
SPLITS = ("train", "validation_seen", "validation_unseen")
BOOKS_HELD_OUT, INSTRUCTIONS_HELD_OUT = 20, 100  # one of so many, to measure the base's loss on
INPUTS_HELD_OUT = 5  # one of so many inputs of the tasks

# Which tasks are chosen. The first is what makes instructions matter: who sees such an input alone
# cannot know what is asked for. The others leave out what a model of some million parameters cannot do.
SHARED = 0.05  # the least share of a task's inputs that other tasks have, too
FITTING, LONGEST = 0.9, 900  # the least share of records of so many characters at most
WORDS = 5  # of a task's inputs, at least, in the median: texts, not names to know facts of
NUMBERS = 0.1  # the largest share of outputs that begin with a digit: no arithmetic


def prepare_data(source: pathlib.Path, output: pathlib.Path) -> None:
    """Writes books/, instructions/ and tasks/, each with a train split and others, whole or not at all.

    Args:
      source: a folder as launch/miniature.py describes it.

    Raises:
      UserError: if a file is missing or damaged.
    """
    if output.exists():
        return
    with atomic_directory(output) as tmp:
        texts = [{"text": book["text"]} for book in _records(source / "books" / "books.jsonl.xz")]
        _write(tmp / "books", texts, "validation_books", BOOKS_HELD_OUT)
        superni = {name: list(_records(source / "superni" / f"{name}.json")) for name in SPLITS}
        tasks = chosen_tasks(superni)
        held_out = {_normal(record["input"]) for record in tasks["validation_seen"]}
        alpaca = list(_records(source / "alpaca" / "alpaca_data.json"))
        examples = [
            {name: record.get(name) or "" for name in ("instruction", "input", "output")}
            for record in superni["train"] + alpaca
            if _normal(record.get("input") or "") not in held_out
        ]
        _write(tmp / "instructions", examples, "validation_instructions", INSTRUCTIONS_HELD_OUT)
        (tmp / "tasks").mkdir()
        for name, records in tasks.items():
            text = json.dumps(records, ensure_ascii=False, indent=0)
            (tmp / "tasks" / f"{name}.json").write_text(text, encoding="utf-8")


def chosen_tasks(superni: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """The splits of the tasks that a small model can learn and for which it needs the instruction.

    Of the inputs of train one of INPUTS_HELD_OUT goes to validation_seen, with all the records of it;
    no input of validation_seen is in train. The tasks of validation_unseen cannot be chosen by what
    they share with others. Every split is in a random order, the same every time.
    """
    having = defaultdict(set)
    by_task = defaultdict(list)
    for record in superni["train"]:
        having[_normal(record["input"])].add(record["task"])
        by_task[record["task"]].append(record)
    chosen = set()
    for task, records in by_task.items():
        shared = _share(records, lambda record: len(having[_normal(record["input"])]) > 1)
        if shared >= SHARED and _is_feasible(records):
            chosen.add(task)
    splits: dict[str, list[Record]] = {name: [] for name in SPLITS}
    seen = [r for r in superni["validation_seen"] if r["task"] in chosen and _fits(r)]
    reserved = {_normal(record["input"]) for record in seen}
    for record in (r for r in superni["train"] if r["task"] in chosen and _fits(r)):
        text = _normal(record["input"])
        held_out = text in reserved or _number(text) % INPUTS_HELD_OUT == 0
        splits["validation_seen" if held_out else "train"].append(record)
    splits["validation_seen"] += seen
    unseen = defaultdict(list)
    for record in superni["validation_unseen"]:
        unseen[record["task"]].append(record)
    for records in unseen.values():
        if _is_feasible(records):
            splits["validation_unseen"] += [record for record in records if _fits(record)]
    return {
        name: sorted(records, key=lambda r: _number(f"{r['task']} {r['input']} {r['output']}"))
        for name, records in splits.items()
    }


def _is_feasible(records: list[Record]) -> bool:
    words = statistics.median(len(record["input"].split()) for record in records)
    numbers = _share(records, lambda record: record["output"].strip()[:1].isdigit())
    return _share(records, _fits) >= FITTING and words >= WORDS and numbers <= NUMBERS


def _fits(record: Record) -> bool:
    return sum(len(record[name]) for name in ("instruction", "input", "output")) <= LONGEST


def _share(records: list[Record], holds: Callable[[Record], bool]) -> float:
    return sum(map(holds, records)) / len(records)


def _normal(text: str) -> str:
    """A text in lower case, without what stands between its words."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _number(text: str) -> int:
    """A number that looks random, the same for the same text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def _records(path: pathlib.Path) -> Iterator[Record]:
    """Records of a JSON list, or one a line compressed by xz."""
    try:
        with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
            yield from json.load(file) if path.suffix == ".json" else map(json.loads, file)
    except (OSError, ValueError, lzma.LZMAError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _write(folder: pathlib.Path, records: list[Record], held_out: str, every: int) -> None:
    """Writes train.jsonl and another split, of which there is one of `every` records."""
    folder.mkdir()
    train = [record for i, record in enumerate(records) if i % every]
    for name, of_split in (("train", train), (held_out, records[::every])):
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in of_split)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
