"""Judgements: files of them, ours and the published ones, and what they amount to.

A file is a JSON object with "names" of the runs a and b, their "scores" (wins, ties half), and
"results": what the judge saw, its "choice" (a, b or tie, whatever the order was), and whether it was
"swapped". Ours also say of each result its "split" and "row", hold the judge's whole "reply", and have
results whose choice is "unread". The published ones hold one split, which the file's name says.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gist_jax.errors import UserError
from gist_jax.evaluation.intervals import means
from gist_jax.evaluation.judge import (
    CHOICES,
    SCORES,
    UNREAD,
    Comparison,
    read_reason,
    read_reply,
)
from gist_jax.evaluation.predictions import Record, split_name
from gist_jax.evaluation.scores import Row, flat
from gist_jax.io import Path, read_json

FORMAT = 1
ALL = "all"


class Judgement(NamedTuple):
    """One choice."""

    split: str
    row: int  # of the split
    instruction: str
    input: str
    choice: str  # one of CHOICES, or UNREAD
    swapped: bool


class Judgements(NamedTuple):
    """All choices between two runs."""

    names: tuple[str, str]  # of a and b
    results: list[Judgement]
    scores: dict[str, float]  # wins by name, ties half, as the file says it


def prompt(result: Mapping[str, Any]) -> tuple[str, str]:
    """Instruction and input of a result; the published ones have both in one text, x."""
    if "instruction" in result:
        return result["instruction"], result.get("input") or ""
    instruction, _, given = result["x"].partition("\nInput:")
    return instruction.removeprefix("Instruction:").strip(), given.strip()


def result(comparison: Comparison, names: Sequence[str], reply: str | None) -> dict[str, Any]:
    """What a file says of a comparison.

    Args:
      reply: the judge's; None if it was not asked, because both outputs are equal.
    """
    if reply is None:
        choice, reason = "tie", "both outputs are equal"
    else:
        choice, reason = read_reply(reply, comparison.swapped), read_reason(reply)
    prompt = f"Instruction: {comparison.instruction}"
    return {
        "split": comparison.split,
        "row": comparison.row,
        "reason": reason,
        "choice": choice,
        "swapped": comparison.swapped,
        "reply": reply,
        "instruction": comparison.instruction,
        "input": comparison.input,
        "x": f"{prompt}\nInput: {comparison.input}" if comparison.input else prompt,
        names[0]: comparison.a,
        names[1]: comparison.b,
    }


def usage(replies: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The tokens that replies took, as far as the server has said."""
    names = "prompt_tokens", "completion_tokens"
    found = [reply["usage"] for reply in replies]
    return {name: sum(counts[name] or 0 for counts in found) for name in names}


def as_json(names: Sequence[str], results: Sequence[dict[str, Any]], **about: Any) -> dict[str, Any]:
    """What a file holds.

    Args:
      results: with a choice each.
      about: the judge, and what it took.
    """
    chosen = [SCORES[result["choice"]] for result in results if result["choice"] in CHOICES]
    scores = dict(zip(names, (sum(chosen), len(chosen) - sum(chosen)), strict=True))
    unread = sum(result["choice"] == UNREAD for result in results)
    head = {"format": FORMAT, "names": dict(zip("ab", names, strict=True)), "scores": scores}
    return {**head, "unread": unread, **about, "results": list(results)}


def read_judgements(path: Path) -> Judgements:
    """Reads a file of judgements, ours or a published one.

    Raises:
      UserError: if it is none, or a newer version has written it.
    """
    found = read_json(path)
    if found.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} has format {found['format']!r}, but this version of gist_jax reads 1")
    results = []
    try:
        names = found["names"]["a"], found["names"]["b"]
        for number, result in enumerate(found["results"]):
            choice = str(result["choice"]).strip().lower()
            lost = str(result.get("reason", "")).lower().startswith("could not parse")
            results.append(
                Judgement(
                    result.get("split", split_name(path)),
                    result.get("row", number),
                    *prompt(result),
                    UNREAD if lost or choice not in CHOICES else choice,
                    bool(result["swapped"]),
                )
            )
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} holds no judgements: names, and results with choice and x") from None
    return Judgements(names, results, found.get("scores") or {})


def counted(judged: Judgements) -> dict[str, float]:
    """The scores that the results amount to. Some of the published files say others by a few."""
    chosen = [SCORES[result.choice] for result in judged.results if result.choice in CHOICES]
    return dict(zip(judged.names, (sum(chosen), len(chosen) - sum(chosen)), strict=True))


def verdicts(results: Iterable[Judgement]) -> dict[tuple[str, int], float]:
    """The score of a by split and row: 1 where it is better, 0 where b is, and 0.5 for a tie.

    Of a row that was judged in both orders it is the mean. Rows without a choice are left out.
    """
    scores: dict[tuple[str, int], list[float]] = {}
    for result in results:
        if result.choice in CHOICES:
            scores.setdefault((result.split, result.row), []).append(SCORES[result.choice])
    return {row: float(np.mean(of_row)) for row, of_row in scores.items()}


def table(results: Sequence[Judgement]) -> list[Row]:
    """Makes a row per split, and one for all if there are several.

    Returns:
      Columns "split", "rows", "wins", "ties" and "losses" of a, "unread" replies, "win_rate" in percent
      with its interval (ties are half a win), and "first" in percent: how often, where one was chosen,
      it was the one that the judge saw first.
    """
    splits = list(dict.fromkeys(result.split for result in results))
    rows = []
    for split in [*splits, ALL] if len(splits) > 1 else splits:
        chosen = [result for result in results if split in (result.split, ALL)]
        scores = np.array(list(verdicts(chosen).values()))
        firsts = [(r.choice == "a") != r.swapped for r in chosen if r.choice in ("a", "b")]
        row: Row = {"split": split, "rows": str(len({(r.split, r.row) for r in chosen}))}
        counts = {"wins": scores > 0.5, "ties": scores == 0.5, "losses": scores < 0.5}
        row |= {name: str(int(np.sum(which))) for name, which in counts.items()}
        row["unread"] = str(sum(r.choice == UNREAD for r in chosen))
        if len(scores):
            row |= flat("win_rate", means(100 * scores[:, None])[0])
        row["first"] = 100 * float(np.mean(firsts)) if firsts else float("nan")
        rows.append(row)
    return rows


def by_row(results: Sequence[Judgement]) -> list[tuple[Record, str]]:
    """Instruction and input of every row, and its choice: a tie where its orders differ; or UNREAD."""
    scores = verdicts(results)
    rows = {(result.split, result.row): result for result in results}
    found = []
    for place, result in rows.items():
        score = scores.get(place)
        choice = UNREAD if score is None else "tie" if score == 0.5 else "a" if score > 0.5 else "b"
        found.append(({"instruction": result.instruction, "input": result.input}, choice))
    return found
