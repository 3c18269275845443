"""Figures of what gisting saves."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    Formatter,
    LogLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from gist_jax.benchmark.rows import Row

COLOURS = {"prompt_cache": "#8fb0e8", "gist_cache": "#1f7a5c"}
# The two often save the same: the second is drawn thin, over the first.
_STYLES = {
    "prompt_cache": {"marker": "s", "markersize": 8, "linewidth": 3.5},
    "gist_cache": {"marker": "o", "markersize": 4.5, "linewidth": 1.4},
}


def figures(rows: list[Row]) -> dict[str, Figure]:
    """Figures by name: "saving", "break_even" and "memory", each against the instruction's length.

    Args:
      rows: at least one, a row for each workload of a grid and each mode. Of what a figure does not
        show, such as several lengths of the input, it takes the first, and its title says so.
    """
    return {"saving": _saving(rows), "break_even": _break_even(rows), "memory": _memory(rows)}


def _saving(rows: list[Row]) -> Figure:
    rows, fixed = _at_first(rows, "input", "output", "gist_tokens")
    measured = any("first_saved" in row for row in rows)
    title = f"FLOPs{' and time' if measured else ''} saved up to the first token\n{fixed}"
    figure, panels = _panel_per_batch(rows, title, "saved")
    for panel, at_batch in panels:
        panel.axhline(1, color="#999999", linewidth=0.8)
        hollow = {"linestyle": "--", "markerfacecolor": "white"}
        _lines(panel, at_batch, "first_saved_flops", ", FLOPs", **(hollow if measured else {}))
        if measured:
            _lines(panel, at_batch, "first_saved", ", time (95 %)")
        panel.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _finish(figure, rows)
    return figure


def _break_even(rows: list[Row]) -> Figure:
    rows, fixed = _at_first(rows, "input", "output", "gist_tokens")
    title = f"How often a cache must be reused to pay off\n{fixed}"
    if any(row["reuses"] is None for row in rows if row["mode"] in COLOURS):
        title += "\nwhere there is no marker, never"
    figure, panels = _panel_per_batch(rows, title, "reuses")
    for panel, at_batch in panels:
        _lines(panel, at_batch, "reuses")
    _finish(figure, rows)
    return figure


def _memory(rows: list[Row]) -> Figure:
    rows, fixed = _at_first(rows, "input", "output", "batch", "gist_tokens")
    shown: dict[str, tuple[str, Formatter]] = {"cache_bytes": ("cache of one prompt", EngFormatter("B"))}
    if any("prompts" in row for row in rows):
        shown["prompts"] = ("prompts whose caches fit next to the model", StrMethodFormatter("{x:,.0f}"))
    figure = Figure(figsize=(max(5.0, 4.2 * len(shown)), 3.8), layout="constrained")
    figure.suptitle(f"Memory for caches\n{fixed}", fontsize=11)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (column, (title, form)) in zip(panels, shown.items(), strict=True):
        panel.set_title(title, fontsize=10)
        _lines(panel, rows, column)
        panel.set_yscale("log", nonpositive="mask")
        panel.margins(y=0.2)
        low, high = panel.get_ylim()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(form)
    _finish(figure, rows)
    return figure


def _at_first(rows: list[Row], *names: str) -> tuple[list[Row], str]:
    """The rows that have the first row's values of these columns, and a text that says which."""
    parts = []
    for name in names:
        first, *others = dict.fromkeys(row[name] for row in rows)
        rest = f" (not {', '.join(map(str, others))})" if others else ""
        parts.append(f"{name.replace('_', ' ')} {first}{rest}")
    kept = [row for row in rows if all(row[name] == rows[0][name] for name in names)]
    return kept, ", ".join(parts)


def _panel_per_batch(
    rows: list[Row], title: str, ylabel: str
) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    """Empty panels, three side by side at most, and the rows that belong into each."""
    batches = sorted({row["batch"] for row in rows})
    lines = math.ceil(len(batches) / 3)
    columns = math.ceil(len(batches) / lines)
    figure = Figure(figsize=(max(5.0, 3.6 * columns), 0.9 + 2.9 * lines), layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.supylabel(ylabel, fontsize=10)
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for panel in panels[len(batches) :]:
        panel.remove()
    for batch, panel in zip(batches, panels, strict=False):
        panel.set_title(f"batch {batch}", fontsize=10)
        panel.axhline(0, color="#999999", linewidth=0.8)
    of_batches = [[row for row in rows if row["batch"] == batch] for batch in batches]
    return figure, list(zip(panels, of_batches, strict=False))


def _lines(panel: Axes, rows: list[Row], column: str, label: str = "", **style: Any) -> None:
    """A line of each cached mode, with its interval if there are columns of one; None leaves a gap."""
    for mode, colour in COLOURS.items():
        line = sorted((row for row in rows if row["mode"] == mode), key=lambda row: row["instruction"])
        if not line:
            continue
        x = [row["instruction"] for row in line]
        look = {"color": colour, "label": mode.replace("_", " ") + label, **_STYLES[mode], **style}
        panel.plot(x, _values(line, column), **look)
        if any(f"{column}_low" in row for row in line):
            low, high = _values(line, f"{column}_low"), _values(line, f"{column}_high")
            # Around its middle, since a bootstrap's interval need not hold the value itself.
            wide = {"elinewidth": look["linewidth"] / 1.5, "capsize": look["markersize"] / 1.5}
            panel.errorbar(x, (low + high) / 2, (high - low) / 2, fmt="none", ecolor=colour, **wide)


def _values(rows: list[Row], column: str) -> np.ndarray:
    return np.array([row.get(column) for row in rows], float)  # NaN for None


def _finish(figure: Figure, rows: list[Row]) -> None:
    """What all panels have: lengths as ticks, few lines around, and one legend below."""
    lengths = sorted({row["instruction"] for row in rows})
    for panel in figure.axes:
        panel.set_xscale("log")
        panel.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)
        panel.set_xticks(lengths, map(str, lengths), rotation=45 if len(lengths) > 4 else 0)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("tokens of the instruction", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
