"""A page for people: what was run, the figures, and a table of every row."""

import base64
import io
import itertools
import pathlib
from html import escape

from matplotlib.figure import Figure

from gist_jax.benchmark.columns import POINT, Form, Row, columns
from gist_jax.files import whole_file

_TITLE = "What gisting saves"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
img { background: white; border-radius: 6px; display: block; margin: 1.5rem 0; max-width: 100%; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .2rem .7rem; text-align: right; vertical-align: bottom; white-space: nowrap; }
th { white-space: normal; }
tbody { border-top: 1px solid #8886; }
small { opacity: .7; }
"""


def write_page(
    path: str | pathlib.Path, rows: list[Row], figures: dict[str, Figure], environment: dict[str, str]
) -> None:
    """Writes one HTML page that needs no other file, whole or not at all.

    Args:
      rows: at least one. Those of one point stand together.
      figures: by name.
      environment: what the numbers hold for, such as versions, the device and the command.
    """
    parts = [
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_TITLE}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{_TITLE}</h1>\n<ul>",
        *(f"<li>{escape(name)}: <b>{escape(value)}</b></li>" for name, value in environment.items()),
        "</ul>",
        *(_image(name, figure) for name, figure in figures.items()),
        _table(rows),
        "</body>\n</html>\n",
    ]
    with whole_file(path) as beside:
        beside.write_text("\n".join(parts), encoding="utf-8")


def _image(name: str, figure: Figure) -> str:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    data = base64.b64encode(png.getvalue()).decode()
    return f'<img alt="{escape(name.replace("_", " "))}" src="data:image/png;base64,{data}">'


def _table(rows: list[Row]) -> str:
    """A body for each point; columns that no row has a value for are left out."""
    shown = columns(rows)
    titles = _line("th", [escape(title) for title, _ in shown.values()])
    lines = [f'<div class="wide">\n<table>\n<thead>{titles}</thead>']
    for _, of_point in itertools.groupby(rows, lambda row: [row[name] for name in POINT]):
        cells = [[_cell(row, name, form) for name, (_, form) in shown.items()] for row in of_point]
        lines += ["<tbody>", *(_line("td", x) for x in cells), "</tbody>"]
    return "\n".join([*lines, "</table>\n</div>"])


def _line(tag: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"


def _cell(row: Row, column: str, form: Form) -> str:
    if row.get(column) is None:
        return ""
    text = escape(form(row[column]))
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    if low is None or high is None:
        return text
    return f"{text} <small>({escape(form(low))} to {escape(form(high))})</small>"
