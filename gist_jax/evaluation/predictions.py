"""Predictions: the records that are kept of what a model wrote, as CSV, and how those of two runs pair.

A record has the texts of FIELDS. Those that we generate hold MORE. The published ones have the columns
x, y_pred and y_true, where x is a whole prompt with its gist tokens; they are read into the same fields.
"""

import pathlib
import re
from collections import Counter
from collections.abc import Sequence

from gist_jax.errors import UserError, shortened
from gist_jax.io import Path, read_csv
from gist_jax.workdir import MODEL, PREDICTIONS, best_predictions

FIELDS = ("instruction", "input", "reference", "prediction")
# The number of gist tokens; tokens of the instruction without them, of the whole prompt with them, and
# of the output without its end; "eos" if it came to an end, or "length" if it was cut.
MORE = ("k", "instruction_tokens", "prompt_tokens", "output_tokens", "reason")
PUBLISHED = ("x", "y_pred", "y_true")

Record = dict[str, str]

_GISTS = re.compile(r"\s*<GIST>(?:\s*<GIST>)*\s*")
_OUTPUT = re.compile(r"(?:^|\n)Output:")
_SPLIT = re.compile(r"validation_[a-z0-9]+")


def read_splits(path: Path) -> dict[str, list[Record]]:
    """The predictions of a run by split: of a CSV, or all that a workdir has of its best checkpoint.

    Raises:
      UserError: if there are none, or one cannot be read.
    """
    path = pathlib.Path(path)
    if not (path / MODEL).exists():
        return {split_name(path): read_predictions(path)}
    found = best_predictions(path)
    if not found:
        raise UserError(f"{path} has no predictions yet")
    return {split: read_predictions(file) for split, file in found.items()}


def split_name(path: Path) -> str:
    """The split that a file's name says, as "validation_human"; the whole name if it says none."""
    stem = pathlib.Path(path).stem
    found = _SPLIT.search(stem)
    return found[0] if found else stem


def run_name(path: Path) -> str:
    """What a run is called: its workdir, or the folder of a CSV that is named by its split alone."""
    path = pathlib.Path(path)
    if path.suffix != ".csv":
        return path.name
    if path.parent.name == PREDICTIONS:
        return path.parent.parent.name
    return path.parent.name if _SPLIT.search(path.stem) and path.parent.name else path.stem


def read_predictions(path: Path) -> list[Record]:
    """Reads a CSV with at least the columns reference and prediction, or the published ones.

    Raises:
      UserError: if it cannot be read, is empty or lacks a column, or a row lacks a cell.
    """
    rows = read_csv(path)
    columns = rows[0].keys() if rows else ()
    published = set(PUBLISHED) <= set(columns)
    needed = PUBLISHED if published else FIELDS[2:]
    if not rows or not set(needed) <= set(columns):
        raise UserError(
            f"{path} must have rows with the columns reference and prediction, or x, y_pred and y_true"
        )
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UserError(f"row {number} of {path} has not as many cells as the header has columns")
    if published:
        return [_of_published(row) for row in rows]
    return [{"instruction": "", "input": "", **row} for row in rows]


def _of_published(row: Record) -> Record:
    """The record of a published row.

    {x: "Instruction: Say it in French. <GIST> Input: tea\\nOutput: thé", y_pred: "le", y_true: "thé"}
        -> {instruction: "Say it in French.", input: "tea", reference: "thé", prediction: "le", k: "1"}

    Of decoder-only models x goes on with the reference, which is taken away.
    """
    prompt, reference = row["x"].replace("⁇", "").strip(), row["y_true"]
    found = _GISTS.search(prompt)
    before, after = (prompt[: found.start()], prompt[found.end() :]) if found else (prompt, "")
    for output in _OUTPUT.finditer(after):
        if _collapsed(after[output.end() :]) == _collapsed(reference):
            after = after[: output.start()]
            break
    texts = before.removeprefix("Instruction:"), after.removeprefix("Input:")
    instruction, given = (text.strip() for text in texts)
    k = str(prompt.count("<GIST>"))
    record = dict(zip(FIELDS, (instruction, given, reference, row["y_pred"]), strict=True))
    return {**record, "k": k}


def pair(ours: Sequence[Record], theirs: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """Puts records of one run into the order of another's for the same examples.

    Records pair whose instruction and input are the same but for white space; of equal ones the first
    with the first. Where prompts were cut at different lengths, as those with more gist tokens are, one
    input may begin with the other, if instruction and reference are the same.

    Args:
      names: of the two files, for what is said of rows that do not pair.

    Returns:
      Those of `theirs`, one for each of `ours`.

    Raises:
      UserError: naming the first rows that do not pair.
    """
    for name, records in zip(names, (ours, theirs), strict=True):
        if len(records) > 1 and not any(r["instruction"] or r["input"] for r in records):
            raise UserError(f"{name} has no column instruction or input by which its rows could pair")
    rows = {key: i for i, key in enumerate(keys(theirs))}
    paired = [rows.pop(key, None) for key in keys(ours)]
    left = list(rows.values())
    for i, record in enumerate(ours):
        cut = [j for j in left if paired[i] is None and _differ_by_a_cut(record, theirs[j])]
        if len(cut) == 1:
            paired[i] = cut[0]
            left.remove(cut[0])
    lacking = [i for i, found in enumerate(paired) if found is None]
    if lacking or left:
        said = _without_partner(names[0], ours, lacking), _without_partner(names[1], theirs, left)
        raise UserError(f"{names[0]} and {names[1]} do not pair: {'; '.join(filter(None, said))}")
    return [theirs[found] for found in paired if found is not None]


def _without_partner(name: str, records: Sequence[Record], rows: Sequence[int]) -> str:
    """Which rows of a file have no partner; empty if all have one."""
    named = [f"{i + 1} ({shortened(records[i]['instruction'], 40)!r})" for i in rows[:3]]
    if len(rows) > 3:
        named.append(f"{len(rows) - 3} more")
    return f"no partner for row {', '.join(named)} of {name}" if rows else ""


def keys(records: Sequence[Record]) -> list[tuple[str, str, int]]:
    """Each record's instruction and input, and how many before it have the same."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for record in records:
        prompt = _collapsed(record["instruction"]), _collapsed(record["input"])
        keys.append((*prompt, seen[prompt]))
        seen[prompt] += 1
    return keys


def _differ_by_a_cut(one: Record, other: Record) -> bool:
    same, *begin = (
        [_collapsed(record[field]) for record in (one, other)]
        for field in ("instruction", "input", "reference")
    )
    return same[0] == same[1] and all(a.startswith(b) or b.startswith(a) for a, b in begin)


def _collapsed(text: str) -> str:
    return " ".join(text.split())
