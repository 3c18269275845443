"""Results of the benchmark: a table in the terminal, and files."""

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

# Of columns.columns: what fits into a terminal.
_SHOWN = (
    *("instruction", "input", "output", "batch", "gist_tokens", "mode"),
    *("first_flops", "first_saved_flops", "first_seconds", "first_saved"),
    *("A100-80GB_first_seconds", "H100_first_seconds", "v5e_first_seconds"),
    *("token_seconds", "total_seconds", "total_saved", "cache_bytes", "reuses", "agreement"),
)


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
    return f"{len(names)} × {names[0]}" if names else platform.processor()


def as_text(rows: list[Row]) -> str:
    """A line for each row; lengths that all rows share stand above."""
    shared = [name for name in POINT if len({row[name] for row in rows}) == 1]
    found = columns(rows)
    shown = {name: found[name] for name in _SHOWN if name in found and name not in shared}
    lines = [[title for title, _ in shown.values()]]
    for row in rows:
        values = [(row.get(name), form) for name, (_, form) in shown.items()]
        lines.append(["" if value is None else form(value) for value, form in values])
    above = ", ".join(f"{found[name][0]} {rows[0][name]}" for name in shared)
    left = list(shown).index("mode") + 1
    return f"{above}\n{aligned(lines, left)}"


def write(output: Path, rows: list[Row], environment: dict[str, str]) -> None:
    """Writes a CSV, a JSON with what the figures hold for, figures as PNG, and a page with all of it."""
    made = figures(rows)
    write_csv(output / "results.csv", rows)
    write_json(output / "results.json", {"environment": environment, "rows": rows})
    for name, figure in made.items():
        with whole_file(output / f"{name}.png") as beside:
            figure.savefig(beside, dpi=150)
    write_page(output / "index.html", rows, made, environment)
