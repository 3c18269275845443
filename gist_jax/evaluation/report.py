"""Gisting compared with its controls: a table and a plot of the same metrics."""

import pathlib
from typing import Any

from matplotlib.figure import Figure

from gist_jax.evaluation.rouge import recovery
from gist_jax.gist import CONDITIONS
from gist_jax.io import atomic_write, format_table

SHOWN = {"rougeL": "ROUGE-L", "exact_match": "exact match"}

Row = dict[str, Any]  # column -> text or number
Metrics = dict[str, dict[str, float]]  # condition -> "split/metric" -> percent


def rows(metrics: Metrics) -> list[Row]:
    """Makes a row per split and metric, with the recovery of gist between the controls."""
    names = [name for name in metrics["gist"] if name.split("/")[1] in SHOWN]
    table = []
    for name in names:
        split, metric = name.split("/")
        values = {condition: metrics[condition][name] for condition in CONDITIONS}
        table.append({"split": split, "metric": SHOWN[metric], **values, "recovery": recovery(**values)})
    return table


def as_text(table: list[Row]) -> str:
    """Formats columns, those of the first row; numbers with one decimal."""
    lines = [list(table[0])]
    for row in table:
        cells = [x if isinstance(x, str) else f"{x:.1f}" for x in row.values()]
        lines.append([f"{x} %" if "recovery" in c else x for c, x in zip(row, cells, strict=True)])
    return format_table(lines, left=2)


def write_figure(path: pathlib.Path, table: list[Row]) -> None:
    """Draws bars of every condition by split, a panel per metric, as PNG."""
    metrics = list(dict.fromkeys(row["metric"] for row in table))
    figure = Figure(figsize=(5.2 * len(metrics), 4), layout="constrained")
    colours = {"neg_control": "#bbbbbb", "gist": "#2a7f62", "pos_control": "#3b5b92"}
    for panel, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        shown = [row for row in table if row["metric"] == metric]
        for i, (condition, colour) in enumerate(colours.items()):
            bars = panel.bar(
                [x + 0.27 * (i - 1) for x in range(len(shown))],
                [row[condition] for row in shown],
                width=0.25,
                color=colour,
                label=condition,
            )
            panel.bar_label(bars, fmt="%.0f", fontsize=8)
        labels = [
            f"{row['split'].removeprefix('validation_')}\nrecovery {row['recovery']:.0f} %"
            for row in shown
        ]
        panel.set_xticks(range(len(shown)), labels)
        panel.set(title=metric, ylim=(0, 105), ylabel="percent")
        panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    with atomic_write(path) as tmp:
        figure.savefig(tmp, dpi=150)
