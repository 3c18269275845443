"""HTML pages that need no other file, in light and dark, for a narrow screen and a wide one."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

from gist_jax.io import Path, atomic_write

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


def write_page(path: Path, title: str, parts: Iterable[str], style: str = "") -> None:
    """Writes a page, whole or not at all.

    Args:
      parts: HTML that stands in the body, below the title.
      style: CSS besides that of all pages.
    """
    head = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}'
    lines = [
        f"{head}</title>",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>",
        *parts,
        "</body>\n</html>\n",
    ]
    with atomic_write(path) as tmp:
        tmp.write_text("\n".join(lines), encoding="utf-8")


def facts(named: dict[str, str]) -> str:
    """A list of what something holds for."""
    items = (f"<li>{escape(name)}: <b>{escape(value)}</b></li>" for name, value in named.items())
    return "\n".join(["<ul>", *items, "</ul>"])


def image(name: str, figure: Figure, dark: Figure | None = None) -> str:
    """A figure, which the page holds as PNG.

    Args:
      dark: the same figure for where pages are dark.
    """
    shown = f'<img alt="{escape(name.replace("_", " "))}" src="{_png(figure)}">'
    if dark is None:
        return shown
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{_png(dark)}">'
    return f"<picture>{source}{shown}</picture>"


def _png(figure: Figure) -> str:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def table(header: Sequence[str], bodies: Iterable[Sequence[Sequence[str]]]) -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
      header: HTML of its cells.
      bodies: groups of rows with a line between them; of each cell its HTML.
    """
    lines = [f'<div class="wide">\n<table>\n<thead>{_line("th", header)}</thead>']
    for rows in bodies:
        lines += ["<tbody>", *(_line("td", cells) for cells in rows), "</tbody>"]
    return "\n".join([*lines, "</table>\n</div>"])


def _line(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"
