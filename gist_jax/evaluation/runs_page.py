"""One HTML page of compared runs: the paper's table, figures, what is lost where, and all outputs."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from gist_jax import html_page
from gist_jax.evaluation import suite
from gist_jax.evaluation.comparison import Compared, short, wide
from gist_jax.evaluation.rouge import ALL_METRICS
from gist_jax.evaluation.scores import Row, form, interval
from gist_jax.io import Path

_NOTES = (
    "ROUGE-L is an F-measure with stemming, in percent. Recovery is how much of the gap between "
    "neg_control, which does not see the instruction, and pos_control, which sees all of it, a run "
    "closes. Intervals hold 95 % of 10,000 bootstrap draws of the examples."
)
_OUTPUTS = (
    "Behind each run stands the ROUGE-L of its output. Words are marked that are in no longest common "
    "subsequence with the reference."
)


def write_page(
    path: Path,
    compared: Sequence[Compared],
    table: Sequence[Row],
    settings: Sequence[str],
    figures: Mapping[str, tuple[Figure, Figure]],
    about: dict[str, str],
) -> None:
    """Writes the page, whole or not at all.

    Args:
      table: of `comparison.rows`.
      settings: the names of those that set the runs apart.
      figures: by name, each light and dark.
      about: what the numbers hold for, such as the command.
    """
    images = [html_page.image(name, light, dark) for name, (light, dark) in figures.items()]
    parts = [
        html_page.facts(about),
        f'<p class="note">{_NOTES}</p>',
        _paper_table(table, settings),
        *images,
        *_suites(compared),
        "<h2>Outputs</h2>",
        f'<p class="note">{_OUTPUTS}</p>',
        '<div id="outputs"></div>',
        _data(compared),
        f"<script>\n{_read('outputs.js')}</script>",
    ]
    html_page.write_page(path, "What gisting costs", parts, _read("outputs.css"))


def _read(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


def _paper_table(table: Sequence[Row], settings: Sequence[str]) -> str:
    header, *lines = [
        [
            f"{escape(text)} <small>{escape(more)}</small>" if more else escape(text)
            for text, more in line
        ]
        for line in wide(table, settings)
    ]
    return html_page.table(header, [lines])


def _suites(compared: Sequence[Compared]) -> list[str]:
    """What each gist run loses of the suite, domain by domain, where it was evaluated."""
    parts = []
    for part in compared:
        items = suite.items_of(part.scored[0].records)
        for run in part.runs:
            found, (pos, _) = part.of(run), part.controls(run)
            if items is None or found is None or run.condition != "gist":
                continue
            parts.append(f"<h2>Prompts unlike the training data: {escape(run.name)}</h2>")
            parts.append(_suite_table(suite.table(items, found, pos)))
            lines = [
                f"<li>{escape(one.literal)}{' (so does pos_control)' if one.by_both else ''} "
                f"<small>{escape(one.item.domain)}: {escape(one.item.instruction[:90])}</small></li>"
                for one in suite.lost_literals(items, found, pos)
            ]
            said = f"<summary>{len(lines)} literals that it loses</summary>"
            parts.append(f"<details>{said}<ul>{''.join(lines)}</ul></details>")
    return parts


def _suite_table(rows: Sequence[Row]) -> str:
    names = [name for name in rows[0] if not name.endswith(("_low", "_high"))]
    lines = []
    for row in rows:
        cells = []
        for name in names:
            more = interval(row, name)
            cells.append(escape(form(row[name])) + (f" <small>{escape(more)}</small>" if more else ""))
        lines.append(cells)
    header = [escape(name.replace("_", " ")) for name in names]
    return html_page.table(header, [lines[:-1], lines[-1:]])


def _data(compared: Sequence[Compared]) -> str:
    """All outputs, for outputs.js."""
    runs = list(dict.fromkeys(run.name for part in compared for run in part.runs))
    conditions = {run.name: run.condition for part in compared for run in part.runs}
    first = {conditions[name]: i for i, name in reversed(list(enumerate(runs)))}
    left = first.get("gist", 0)
    data: dict[str, Any] = {
        "runs": runs,
        "left": left,
        "right": first.get("pos_control", next((i for i in range(len(runs)) if i != left), 0)),
        "splits": [_split(part, runs) for part in compared],
    }
    # No text can end the element.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="outputs-data">{text}</script>'


def _split(part: Compared, runs: Sequence[str]) -> dict[str, Any]:
    records = part.scored[0].records
    metrics = {name: ALL_METRICS.index(name) for name in ("rougeL", "exact_match")}
    return {
        "name": short(part.split),
        "runs": [runs.index(run.name) for run in part.runs],
        **{
            field: [record[field] for record in records]
            for field in ("instruction", "input", "reference")
        },
        "outputs": [[record["prediction"] for record in x.records] for x in part.scored],
        "rougeL": [x.values[:, metrics["rougeL"]].round(2).tolist() for x in part.scored],
        "exact": [(x.values[:, metrics["exact_match"]] > 0).tolist() for x in part.scored],
    }
