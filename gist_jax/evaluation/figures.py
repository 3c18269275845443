"""Figures of what compression costs: quality against the number of gist tokens, and against how much
each of them stands for."""

from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from gist_jax.evaluation.comparison import Compared, label, short
from gist_jax.evaluation.intervals import means
from gist_jax.evaluation.rouge import ALL_METRICS
from gist_jax.evaluation.scores import Row, Scored, columns

COLOURS = {"pos_control": "#4c78c8", "neg_control": "#999999"}
# Of gist runs: of settings in the first figure, of numbers of gist tokens in the second.
_GIST = ("#1f8a64", "#c8682c", "#8256b5", "#b8a11f", "#c44e7a", "#3aa3b5")
_GROUPS = 4
_DARK = {"figure.facecolor": "#16181c", "axes.facecolor": "#16181c", "savefig.facecolor": "#16181c"}


def figures(
    compared: Sequence[Compared], table: Sequence[Row], settings: Sequence[str], *, dark: bool = False
) -> dict[str, Figure]:
    """Figures by name: "quality", and "compression" if tokens were counted.

    Args:
      table: of `comparison.rows`.
      settings: the names of those that set the runs apart.
      dark: for a dark page.
    """
    with style.context(["dark_background", _DARK] if dark else []):
        made = {"quality": _quality(table, settings)}
        if any("compression" in row for row in table):
            made["compression"] = _compression(compared)
        for figure in made.values():
            for panel in figure.axes:
                panel.tick_params(labelsize=8)
                panel.spines[["top", "right"]].set_visible(False)
                panel.grid(axis="y", color="#8884", linewidth=0.6)
        return made


def _panels(count: int, title: str, ylabel: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(4.5, 3.2 * count), 3.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.supylabel(ylabel, fontsize=9)
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _quality(table: Sequence[Row], settings: Sequence[str]) -> Figure:
    """ROUGE-L of every split against k, between bands that are the controls' intervals."""
    splits = list(dict.fromkeys(row["split"] for row in table))
    figure, panels = _panels(len(splits), "Quality and the number of gist tokens", "ROUGE-L (95 %)")
    numbers = sorted({int(row["k"]) for row in table if row["condition"] == "gist"}) or [1]
    places = {k: i for i, k in enumerate(numbers)}
    kinds = list(dict.fromkeys(label(row, settings) for row in table if row["condition"] == "gist"))
    for panel, split in zip(panels, splits, strict=True):
        of_split = [row for row in table if row["split"] == split]
        for row in of_split:
            if row["condition"] != "gist":
                colour, name = COLOURS[row["condition"]], label(row, settings)
                panel.axhline(row["rougeL"], color=colour, linewidth=1.4, label=name)
                panel.axhspan(row["rougeL_low"], row["rougeL_high"], color=colour, alpha=0.15, lw=0)
        for i, kind in enumerate(kinds):
            line = sorted(
                (row for row in of_split if label(row, settings) == kind), key=lambda row: int(row["k"])
            )
            x = [places[int(row["k"])] + 0.08 * (i - (len(kinds) - 1) / 2) for row in line]
            value, low, high = (
                np.array([row[f"rougeL{end}"] for row in line], float) for end in ("", "_low", "_high")
            )
            colour = _GIST[i % len(_GIST)]
            panel.errorbar(x, (low + high) / 2, (high - low) / 2, fmt="none", ecolor=colour, capsize=3)
            panel.plot(x, value, marker="o", markersize=5, color=colour, label=kind)
        panel.set_title(short(split), fontsize=10)
        panel.set_xticks(range(len(numbers)), map(str, numbers))
        panel.set_xlim(-0.5, len(numbers) - 0.5)
        panel.set_xlabel("gist tokens", fontsize=9)
    _legend(figure, panels)
    return figure


def _compression(compared: Sequence[Compared]) -> Figure:
    """What is lost to pos_control, for instructions from short to long, a line for each gist run."""
    gists = {part.split: [r for r in part.runs if r.condition == "gist" and r.k] for part in compared}
    shown = [part for part in compared if gists[part.split]]
    lossy = all(part.controls(run)[0] for part in shown for run in gists[part.split])
    title = "Quality and how many tokens of the instruction a gist token stands for"
    ylabel = "ROUGE-L minus that of pos_control (95 %)" if lossy else "ROUGE-L (95 %)"
    figure, panels = _panels(len(shown), title, ylabel)
    for panel, part in zip(panels, shown, strict=True):
        if lossy:
            panel.axhline(0, color=COLOURS["pos_control"], linewidth=1.4, label="pos_control")
        for i, run in enumerate(gists[part.split]):
            found, pos = part.of(run), part.controls(run)[0]
            if found is not None and "instruction_tokens" in columns(found):
                colour = _GIST[i % len(_GIST)]
                x, value, low, high = _groups(found, pos if lossy else None, run.k)
                middle, half = (low + high) / 2, (high - low) / 2
                panel.errorbar(x, middle, half, fmt="none", ecolor=colour, capsize=3)
                panel.plot(x, value, marker="o", markersize=5, color=colour, label=run.name)
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
        left, right = panel.get_xlim()
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500) if left <= t <= right]
        panel.set_xticks(ticks, [f"{t}×" for t in ticks])
        panel.set_title(short(part.split), fontsize=10)
        panel.set_xlabel("compression", fontsize=9)
    _legend(figure, panels)
    return figure


def _groups(found: Scored, pos: Scored | None, k: int) -> np.ndarray:
    """Mean compression and ROUGE-L with interval, `[4, groups]`: as many rows in each, by length."""
    tokens = columns(found)["instruction_tokens"] / k
    values = found.values[:, ALL_METRICS.index("rougeL")]
    if pos is not None:
        values = values - pos.values[:, ALL_METRICS.index("rougeL")]
    groups = np.array_split(np.argsort(tokens, kind="stable"), min(_GROUPS, len(tokens)))
    return np.array([(tokens[rows].mean(), *means(values[rows][:, None])[0]) for rows in groups]).T


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels, below them."""
    named = {
        name: line
        for panel in panels
        for line, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
