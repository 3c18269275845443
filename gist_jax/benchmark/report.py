"""Results of the benchmark: a table in the terminal, and files."""

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

import jax

from gist_jax.benchmark.columns import POINT, Row, columns
from gist_jax.benchmark.figures import figures
from gist_jax.benchmark.page import write_page
from gist_jax.files import whole_file, write_json
from gist_jax.table import aligned, write_csv

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
    """What figures hold for."""
    names = "gist_jax", "jax", "jaxlib", "flax"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    command = shlex.join(["python", "-m", "gist_jax.benchmark", *sys.argv[1:]])
    versions += f", Python {platform.python_version()}"
    return dict(device=device, model=model, dtype=dtype, versions=versions, command=command)


def device_name() -> str:
    """Of the device that programs run on, in words."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} × {names[0]}" if names else platform.processor()


def as_text(rows: list[Row]) -> str:
    """A line for each row; lengths that all rows share stand above."""
    shared = [name for name in POINT if len({row[name] for row in rows}) == 1]
    found = columns(rows)
    shown = [name for name in _SHOWN if name in found and name not in shared]
    lines = [[_SHOWN[name] for name in shown]]
    for row in rows:
        values = [(row.get(name), found[name][1]) for name in shown]
        lines.append(["" if value is None else form(value) for value, form in values])
    above = ", ".join(f"{found[name][0]} {rows[0][name]}" for name in shared)
    return f"{above}\n{aligned(lines, left=shown.index('mode') + 1)}"


def write(output: Path, rows: list[Row], environment: dict[str, str]) -> None:
    """Writes a CSV, a JSON with what the figures hold for, figures as PNG, and a page with all of it."""
    made = figures(rows)
    write_csv(output / "results.csv", rows)
    write_json(output / "results.json", {"environment": environment, "rows": rows})
    for name, figure in made.items():
        with whole_file(output / f"{name}.png") as beside:
            figure.savefig(beside, dpi=150)
    write_page(output / "index.html", rows, made, environment)
