"""Runs compared as in the paper's Table 1: condition × number of gist tokens × split."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gist_jax.evaluation.intervals import means, recovered
from gist_jax.evaluation.rouge import ALL_METRICS
from gist_jax.evaluation.runs import Run, control
from gist_jax.evaluation.scores import Row, Scored, columns, flat, scored
from gist_jax.io import format_table

RECOVERED = ("rougeL", "exact_match")  # metrics whose recovery is shown


class Compared(NamedTuple):
    """What runs wrote for one split, in the same order, with the metrics of each row."""

    split: str
    runs: tuple[Run, ...]
    scored: tuple[Scored, ...]

    def of(self, run: Run | None) -> Scored | None:
        """The part of a run."""
        return next((s for r, s in zip(self.runs, self.scored, strict=True) if r is run), None)

    def controls(self, run: Run) -> tuple[Scored | None, Scored | None]:
        """pos_control and neg_control of a run."""
        pos, neg = (control(run, name, self.runs) for name in ("pos_control", "neg_control"))
        return self.of(pos), self.of(neg)


def compare(runs: Sequence[Run]) -> list[Compared]:
    """Scores all splits that runs have; each split's rows are in the order of its first run.

    Raises:
      UserError: naming rows that do not pair.
    """
    compared = []
    for split in sorted({split for run in runs for split in run.splits}):
        having = tuple(run for run in runs if split in run.splits)
        found = scored([(f"{run.name}, {split}", run.splits[split]) for run in having])
        compared.append(Compared(split, having, tuple(found)))
    return compared


def rows(compared: Sequence[Compared]) -> list[Row]:
    """Makes a row per split and run.

    Returns:
      Columns "split", "run", "condition", "k", the settings that set the runs apart, "rows", all
      metrics, and how outputs ended. Of gist runs also "compression", tokens of an instruction for each
      gist token, and, if there are both controls, "recovery_rougeL" and "recovery_exact_match". Metrics
      and recoveries have columns with "_low" and "_high" behind their names besides.
    """
    table = []
    for part in compared:
        for run, found in zip(part.runs, part.scored, strict=True):
            row: Row = {
                "split": part.split,
                "run": run.name,
                "condition": run.condition,
                "k": str(run.k),
            }
            row |= {name: str(value) for name, value in run.settings.items()}
            row["rows"] = str(len(found.records))
            for name, estimate in zip(ALL_METRICS, means(found.values), strict=True):
                row |= flat(name, estimate)
            of_rows = columns(found)
            if "cut_percent" in of_rows:
                row["cut_percent"] = float(of_rows["cut_percent"].mean())
            if run.condition == "gist":
                if "instruction_tokens" in of_rows and run.k:
                    row["compression"] = float(of_rows["instruction_tokens"].mean()) / run.k
                pos, neg = part.controls(run)
                if pos is not None and neg is not None:
                    for name in RECOVERED:
                        i = ALL_METRICS.index(name)
                        values = (x.values[:, i] for x in (found, pos, neg))
                        row |= flat(f"recovery_{name}", recovered(*values))
            table.append(row)
    return table


def label(row: Row, settings: Sequence[str]) -> str:
    """What a run is called: its condition, and the settings that set it apart."""
    return ", ".join([row["condition"], *(f"{name}={row[name]}" for name in settings)])


def settings_of(runs: Sequence[Run]) -> list[str]:
    """The names of the settings that set runs apart."""
    return list(runs[0].settings)


def short(split: str) -> str:
    """A split's name in a table: "seen" of "validation_seen"."""
    return split.removeprefix("validation_")


def number(row: Row, name: str, unit: str = "") -> tuple[str, str]:
    """A number with one decimal, and its interval; both empty where there is none."""
    if name not in row:
        return "", ""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    interval = "unbounded" if not np.isfinite([low, high]).all() else f"{low:.1f} to {high:.1f}"
    return f"{value:.1f}{unit}", interval


def as_text(table: Sequence[Row], settings: Sequence[str]) -> str:
    """A line for each split and run, for a terminal."""
    lines = [["split", "condition", "k", "ROUGE-L", "95 %", "recovery", "95 %", "exact match", "x"]]
    for row in table:
        exact, _ = number(row, "exact_match")
        compression = f"{row['compression']:.1f}" if "compression" in row else ""
        numbers = *number(row, "rougeL"), *number(row, "recovery_rougeL", " %"), exact, compression
        lines.append([short(row["split"]), label(row, settings), row["k"], *numbers])
    return format_table(lines, left=2)


def wide(table: Sequence[Row], settings: Sequence[str]) -> list[list[tuple[str, str]]]:
    """The paper's table: a line for each run, ROUGE-L and recovery of every split beside each other.

    Returns:
      Cells, the first line the header; of each its text, and its interval or nothing.
    """
    splits = list(dict.fromkeys(row["split"] for row in table))
    by_run: dict[str, dict[str, Row]] = {}
    for row in table:
        by_run.setdefault(row["run"], {})[row["split"]] = row
    header = ["condition", "k", *(f"{x}{short(split)}" for split in splits for x in ("", "recovery, "))]
    lines = [[(name, "") for name in header]]
    for of_split in by_run.values():
        first = next(iter(of_split.values()))
        line = [(label(first, settings), ""), (first["k"], "")]
        for split in splits:
            row = of_split.get(split, {})
            line += [number(row, "rougeL"), number(row, "recovery_rougeL", " %")]
        lines.append(line)
    return lines


def as_markdown(table: Sequence[Row], settings: Sequence[str]) -> str:
    """The paper's table for a README."""
    cells = [
        [f"{text} ({interval})" if interval else text for text, interval in line]
        for line in wide(table, settings)
    ]
    return format_table(cells, left=1, markdown=True)
