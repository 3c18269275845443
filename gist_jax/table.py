"""Tables for terminals and as CSV files."""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gist_jax.files import whole_file


def aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns of cells, two spaces apart: so many aligned at the left, the rest at the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, lines))


def write_csv(path: str | pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the columns of all of them, whole or not at all."""
    with whole_file(path) as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
