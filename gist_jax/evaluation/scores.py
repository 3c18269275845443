"""What a file of predictions is worth, alone or next to others of the same examples, as a table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gist_jax.evaluation.intervals import COVERAGE, Estimate, means, recovered
from gist_jax.evaluation.predictions import Record, pair
from gist_jax.evaluation.rouge import ALL_METRICS, score_rows
from gist_jax.io import format_table

Row = dict[str, Any]  # column -> text or number


class Scored(NamedTuple):
    """Predictions of one run, and the metrics of each: percent, float64 `[N, 5]` as of ALL_METRICS."""

    name: str
    records: Sequence[Record]
    values: np.ndarray


def scored(files: Sequence[tuple[str, Sequence[Record]]]) -> list[Scored]:
    """Scores files of predictions of the same examples, with a bar, in the order of the first.

    Args:
      files: names and records.

    Raises:
      UserError: naming rows that do not pair.
    """
    first, ours = files[0]
    paired = [(name, pair(ours, records, (first, name))) for name, records in files]
    total = len(ours) * len(files)
    with tqdm(total=total, desc="scoring", unit="row", leave=False) as bar:
        return [Scored(name, records, score_rows(records, bar.update)) for name, records in paired]


def table(ours: Scored, against: Scored | None = None, controls: Sequence[Scored] = ()) -> list[Row]:
    """Makes a row per metric, and per length.

    Args:
      against: what the difference is taken to, of the same examples.
      controls: pos_control and neg_control, between which recovery is measured, or none.

    Returns:
      Columns "metric", "value", "against", "difference" and "recovery" as far as they are asked for;
      those with an interval have columns "value_low", "value_high" and so on besides.
    """
    mine = columns(ours)
    names = list(mine)
    if against is not None:
        theirs = columns(against)
        names = [name for name in names if name in theirs]
        differences = means(np.stack([mine[name] - theirs[name] for name in names], axis=1))
    rows = []
    values = means(np.stack([mine[name] for name in names], axis=1))
    for i, name in enumerate(names):
        row: Row = {"metric": name, **flat("value", values[i])}
        if against is not None:
            row["against"] = float(theirs[name].mean())
            row |= flat("difference", differences[i])
        if controls and name in ALL_METRICS:
            pos, neg = (control.values[:, ALL_METRICS.index(name)] for control in controls)
            row |= flat("recovery", recovered(mine[name], pos, neg))
        rows.append(row)
    return rows


def columns(of: Scored) -> dict[str, np.ndarray]:
    """What there is a mean of, float64 `[N]` each: metrics, lengths, and how outputs ended."""
    records = of.records
    found = dict(zip(ALL_METRICS, of.values.T, strict=True))
    for name, field in {"words": "prediction", "reference_words": "reference"}.items():
        found[name] = np.array([len(record[field].split()) for record in records], float)
    for name in ("k", "instruction_tokens", "prompt_tokens", "output_tokens"):
        if all(record.get(name, "").isdecimal() for record in records):
            found[name] = np.array([int(record[name]) for record in records], float)
    if all(record.get("reason") for record in records):
        cut = [100.0 * (record["reason"] == "length") for record in records]
        found["cut_percent"] = np.array(cut)
    return found


def flat(name: str, x: Estimate) -> Row:
    """The columns of a number with its interval."""
    return {name: x.value, f"{name}_low": x.low, f"{name}_high": x.high}


def as_text(rows: Sequence[Row]) -> str:
    """Formats a line for each row; intervals stand behind what they are of."""
    names = [name for name in rows[0] if not name.endswith(("_low", "_high"))]
    header, lines = [], []
    for name in names:
        header += [name, f"{COVERAGE} % interval"] if f"{name}_low" in rows[0] else [name]
    for row in rows:
        line = []
        for name in names:
            line.append(form(row[name]) if name in row else "")
            if f"{name}_low" in rows[0]:
                line.append(interval(row, name))
        lines.append(line)
    return format_table([header, *lines])


def form(x: str | float) -> str:
    """A text as it is, a number with two decimals."""
    return x if isinstance(x, str) else f"{x:.2f}"


def interval(row: Row, name: str) -> str:
    """The interval of a column, "1.20 to 3.40"; empty if the row has none."""
    if f"{name}_low" not in row:
        return ""
    return f"{row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f}"
