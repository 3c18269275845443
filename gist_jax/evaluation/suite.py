"""What predictions for the prompts of `gist_jax.data.suite` are worth, domain by domain.

A prediction passes if all its literals survive, which means that they stand in it letter by letter, and
all checks of its item hold. They are, by kind:

    equals     the text, but for letter case, white space around lines and a full stop at the end
    contains   stands somewhere in the text, but for letter case
    excludes   does not
    regex      is found in the text
    lines      so many lines are not empty, or [least, most]
    words      so many words, or [least, most]
    json       the text is JSON of this value
    python     the text is Python that defines a function of this name; it is not run
"""

import ast
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gist_jax.data.suite import DOMAINS, Item, items
from gist_jax.errors import shortened
from gist_jax.evaluation.intervals import means
from gist_jax.evaluation.predictions import Record
from gist_jax.evaluation.rouge import ALL_METRICS
from gist_jax.evaluation.scores import Row, Scored, flat

ALL = "all"


def _plain(text: str) -> str:
    lines = [line.strip() for line in text.strip().removesuffix(".").splitlines()]
    return "\n".join(line for line in lines if line).casefold()


def _unfenced(text: str) -> str:
    """What stands in a code fence, if all of the text does."""
    found = re.fullmatch(r"```\w*\n(.*?)\n?```", text.strip(), re.DOTALL)
    return found[1] if found else text.strip()


def _is_json(text: str, value: Any) -> bool:
    try:
        return json.loads(_unfenced(text)) == value
    except ValueError:
        return False


def _defines(text: str, name: str) -> bool:
    try:
        tree = ast.parse(_unfenced(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def _between(count: int, value: int | Sequence[int]) -> bool:
    least, most = (value, value) if isinstance(value, int) else value
    return least <= count <= most


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "equals": lambda text, value: _plain(text) == _plain(value),
    "contains": lambda text, value: value.casefold() in text.casefold(),
    "excludes": lambda text, value: value.casefold() not in text.casefold(),
    "regex": lambda text, value: re.search(value, text.strip()) is not None,
    "lines": lambda text, value: _between(sum(map(bool, map(str.strip, text.splitlines()))), value),
    "words": lambda text, value: _between(len(text.split()), value),
    "json": _is_json,
    "python": _defines,
}


def passes(item: Item, prediction: str) -> bool:
    """Whether all literals of an item survive and all its checks hold."""
    survive = all(text in prediction for text in item.literals)
    return survive and all(CHECKS[kind](prediction, value) for kind, value in item.checks)


def items_of(records: Sequence[Record]) -> list[Item] | None:
    """The items that records are predictions for; None if one of them is for no item."""
    known = {_key(item.instruction, item.input): item for item in items()}
    found = [known.get(_key(record["instruction"], record["input"])) for record in records]
    known_ones = [item for item in found if item is not None]
    return known_ones if len(known_ones) == len(records) else None


def _key(instruction: str, given: str) -> tuple[str, str]:
    return " ".join(instruction.split()), " ".join(given.split())


def table(found: Sequence[Item], ours: Scored, against: Scored | None = None) -> list[Row]:
    """Makes a row per domain, and one for all.

    Args:
      found: the items of the records, see `items_of`.
      against: a run of the same items, as pos_control, to which something may be lost.

    Returns:
      Columns "domain", "items", "passed" and "rougeL" in percent, and "literals", those that survive;
      with `against` also "passed_against" and so on, and "passed_lost" and "rougeL_lost" with intervals.
    """
    mine, theirs = _columns(found, ours), None if against is None else _columns(found, against)
    table = []
    for domain in (*DOMAINS, ALL):
        rows = [i for i, item in enumerate(found) if domain in (item.domain, ALL)]
        if not rows:
            continue
        row: Row = {"domain": domain.replace("_", " "), "items": str(len(rows))}
        for name, values in mine.items():
            row[name] = float(values[rows].mean())
            if theirs is not None:
                row[f"{name}_against"] = float(theirs[name][rows].mean())
                lost = theirs[name][rows] - values[rows]
                row |= flat(f"{name}_lost", means(lost[:, None])[0])
        row["literals"] = _surviving(found, ours, rows)
        if against is not None:
            row["literals_against"] = _surviving(found, against, rows)
        table.append(row)
    return table


def _columns(found: Sequence[Item], run: Scored) -> dict[str, np.ndarray]:
    """Percent, float64 `[N]`."""
    passed = [
        100.0 * passes(item, record["prediction"])
        for item, record in zip(found, run.records, strict=True)
    ]
    return {"passed": np.array(passed), "rougeL": run.values[:, ALL_METRICS.index("rougeL")]}


def _surviving(found: Sequence[Item], run: Scored, rows: Sequence[int]) -> str:
    texts = [(text, run.records[i]["prediction"]) for i in rows for text in found[i].literals]
    return f"{sum(text in prediction for text, prediction in texts)} of {len(texts)}"


class Lost(NamedTuple):
    """A literal that a prediction lacks."""

    item: Item
    literal: str
    by_both: bool  # those that it is compared with lack it too: it is not the compression's fault


def lost_literals(found: Sequence[Item], ours: Scored, against: Scored | None = None) -> list[Lost]:
    """The literals that predictions lack, those first that `against` has."""
    lost = []
    for i, item in enumerate(found):
        for text in item.literals:
            if text not in ours.records[i]["prediction"]:
                by_both = against is not None and text not in against.records[i]["prediction"]
                lost.append(Lost(item, text, by_both))
    return sorted(lost, key=lambda one: one.by_both)


def lost_as_text(lost: Sequence[Lost]) -> str:
    """A line for each."""
    lines = ["literals that are lost:"]
    for item, literal, by_both in lost:
        both = ", by both" if by_both else ""
        lines.append(f"  {literal}{both}  ({item.domain}: {shortened(item.instruction, 60)})")
    return "\n".join(lines)
