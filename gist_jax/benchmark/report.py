"""Results of the benchmark: a table in the terminal, and files, among them a page for people."""

import itertools
import os
import platform
import shlex
import sys
from html import escape
from importlib import metadata
from pathlib import Path

import jax
from matplotlib.figure import Figure

from gist_jax import html_page
from gist_jax.benchmark.figures import figures
from gist_jax.benchmark.rows import WORKLOAD, Form, Row, columns
from gist_jax.html_page import facts, image, table
from gist_jax.io import atomic_write, format_table, write_csv, write_json

_TITLE = "What gisting saves"
# Columns that fit into a terminal, with short titles.
_SHOWN = {
    **{name: name for name in ("instruction", "input", "output", "batch")},
    **{"gist_tokens": "gists", "mode": "mode", "first_flops": "prefill", "first_saved_flops": "saved"},
    **{"first_seconds": "first token", "first_saved": "saved"},
    **{"first_saved_vs_prompt_cache": "vs prompt", "token_seconds": "each next"},
    **{"A100-80GB_first_seconds": "A100-80GB", "H100_first_seconds": "H100", "v5e_first_seconds": "v5e"},
    **{"total_seconds": "all tokens", "total_saved": "saved"},
    **{"total_saved_vs_prompt_cache": "vs prompt", "cache_bytes": "cache"},
    **{"reuses": "reuses", "agreement": "equal"},
}


def environment(device: str, model: str, dtype: str) -> dict[str, str]:
    """What the results hold for: device, model, dtype, versions and command."""
    names = "gist_jax", "jax", "jaxlib", "flax"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    command = shlex.join(["python", "-m", "gist_jax.benchmark", *sys.argv[1:]])
    versions += f", Python {platform.python_version()}"
    return dict(device=device, model=model, dtype=dtype, versions=versions, command=command)


def device_name() -> str:
    """The name of the device that programs run on."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} × {names[0]}" if names else platform.processor()


def as_text(rows: list[Row]) -> str:
    """Formats a line for each row; lengths that all rows share stand above."""
    shared = [name for name in WORKLOAD if len({row[name] for row in rows}) == 1]
    found = columns(rows)
    shown = [name for name in _SHOWN if name in found and name not in shared]
    lines = [[_SHOWN[name] for name in shown]]
    for row in rows:
        values = [(row.get(name), found[name][1]) for name in shown]
        lines.append(["" if value is None else form(value) for value, form in values])
    above = ", ".join(f"{found[name][0]} {rows[0][name]}" for name in shared)
    return f"{above}\n{format_table(lines, left=shown.index('mode') + 1)}"


def write(output: Path, rows: list[Row], environment: dict[str, str]) -> None:
    """Writes a CSV, a JSON with what the results hold for, plots as PNG, and a page with all of it."""
    drawn = figures(rows)
    write_csv(output / "results.csv", rows)
    write_json(output / "results.json", {"environment": environment, "rows": rows})
    for name, figure in drawn.items():
        with atomic_write(output / f"{name}.png") as tmp:
            figure.savefig(tmp, dpi=150)
    write_page(output / "index.html", rows, drawn, environment)


def write_page(
    path: Path, rows: list[Row], figures: dict[str, Figure], environment: dict[str, str]
) -> None:
    """Writes one HTML page that needs no other file, whole or not at all.

    Args:
      rows: at least one. Those of one workload stand together.
      figures: by name.
      environment: what the numbers hold for, such as versions, the device and the command.
    """
    images = (image(name, figure) for name, figure in figures.items())
    html_page.write_page(path, _TITLE, [facts(environment), *images, _table(rows)])


def _table(rows: list[Row]) -> str:
    """Formats a body for each workload; columns that no row has a value for are left out."""
    shown = columns(rows)
    bodies = [
        [[_cell(row, name, form) for name, (_, form) in shown.items()] for row in of_workload]
        for _, of_workload in itertools.groupby(rows, lambda row: [row[name] for name in WORKLOAD])
    ]
    return table([escape(title) for title, _ in shown.values()], bodies)


def _cell(row: Row, column: str, form: Form) -> str:
    if row.get(column) is None:
        return ""
    text = escape(form(row[column]))
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    if low is None or high is None:
        return text
    return f"{text} <small>({escape(form(low))} to {escape(form(high))})</small>"
