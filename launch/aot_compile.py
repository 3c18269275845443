"""Compiles a config for TPUs that are not there: does it fit, and how fast can it be?

python launch/aot_compile.py --config=configs/llama_7b.py:v5e-64 --topology=v5e-64
python launch/aot_compile.py --config=configs/llama_7b.py --topology=v4-16,v4-32,v4-64 --rows_per_chip=4

Needs libtpu: pip install 'gist_jax[tpu]'. Exits with 1 when something does not fit.
"""

import os

# Before libtpu is loaded: several processes may load it, and it neither asks what TPU there is nor warns
# that it cannot know.
os.environ |= {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}

import jax
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from gist_jax import config_door
from gist_jax.benchmark.ahead import PROGRAMS, Report, compile_ahead, slice_of
from gist_jax.errors import UserError
from gist_jax.files import write_json
from gist_jax.training.config import validate

_TOPOLOGY = flags.DEFINE_list("topology", None, "TPU slices, as v5e-64 or v5e:8x8.")
_PROGRAMS = flags.DEFINE_list("programs", list(PROGRAMS), "Which to compile: train, prefill, decode.")
_ROWS = flags.DEFINE_integer(
    "rows_per_chip", None, "Instead of config.data.batch_size: rows of a step for every chip.", 1
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the figures to.")

_GIB = 2**30


def main(config: ConfigDict) -> None:
    jax.config.update("jax_platforms", "cpu")  # or jax looks for the TPU
    validate(config)
    if not _PROGRAMS.value:
        raise UserError("--programs is empty")
    if unknown := set(_PROGRAMS.value) - set(PROGRAMS):
        raise UserError(f"--programs has {unknown.pop()!r}, which is none of {', '.join(PROGRAMS)}")
    slices = {name: slice_of(name) for name in _TOPOLOGY.value}
    reports: list[tuple[str, Report]] = []
    work = [(name, program) for name in slices for program in _PROGRAMS.value]
    for name, program in tqdm(work, desc="compiling", unit="program"):
        if _ROWS.value is not None:
            config.data.batch_size = _ROWS.value * len(slices[name])
        reports.append((name, compile_ahead(config, slices[name], program)))
    if _OUTPUT.value:
        write_json(_OUTPUT.value, [_figures(name, report) for name, report in reports])
    if len(slices) == 1:
        for name, report in reports:
            print(_text(name, report))
    else:
        print(_table(reports))
    for name, report in reports:
        if report.excess:
            needed, memory, excess = (x / _GIB for x in (report.total, report.memory, report.excess))
            raise UserError(
                f"{report.program} on {name} needs {needed:.1f} GiB a chip, {excess:.1f} GiB more than "
                f"the {memory:.2f} GiB there are"
            )


def _figures(topology: str, report: Report) -> dict:
    """Of the JSON file: those of the report, and what follows from them."""
    times = report.roofline
    return {
        "topology": topology,
        **report._asdict(),
        "roofline": times._asdict(),
        "chips": report.chips,
        "excess": report.excess,
        "seconds": [times.best, times.worst],
        "utilisation": [report.utilisation(times.worst), report.utilisation(times.best)],
    }


def _text(topology: str, report: Report) -> str:
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    lines = [f"{report.program} on {topology}: {report.chips} chips ({mesh})"]
    for name in ("parameters", "optimizer", "cache", "activations", "total"):
        if size := getattr(report, name):
            lines.append(f"  {name:22}{size / _GIB:10.2f} GiB a chip")
    lines[-1] += f" of {report.memory / _GIB:.2f}"
    lines.append(f"  {'FLOPs':22}{report.flops / 1e12:10.2f} TFLOP, {report.tokens:,} tokens")
    if report.excess:
        return "\n".join([*lines, "  DOES NOT FIT", ""])
    for kind, size in report.moved.items():
        if size:
            lines.append(f"  {kind:22}{size / _GIB:10.2f} GiB sent by a chip")
    for name, seconds in report.roofline._asdict().items():
        lines.append(f"  {name:22}{1e3 * seconds:10.2f} ms")
    best, worst = report.roofline.best, report.roofline.worst
    lines.append(f"  {'step':22}{1e3 * best:10.2f} to {1e3 * worst:.2f} ms")
    low, high = (100 * report.utilisation(seconds) for seconds in (worst, best))
    lines.append(f"  {'model FLOPs used':22}{low:10.1f} to {high:.1f} %")
    return "\n".join([*lines, ""])


def _table(reports: list[tuple[str, Report]]) -> str:
    """Markdown, a row for each slice and program."""
    lines = [
        "| program | slice | chips | mesh | tokens | GiB a chip | GiB sent | ms | FLOPs used |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for name, report in reports:
        mesh = "×".join(map(str, report.mesh.values()))
        cells = [report.program, name, report.chips, mesh, f"{report.tokens:,}"]
        cells.append(f"{report.total / _GIB:.2f}")
        if report.excess:
            cells += ["does not fit", "", ""]
        else:
            best, worst = report.roofline.best, report.roofline.worst
            low, high = (100 * report.utilisation(seconds) for seconds in (worst, best))
            cells.append(f"{sum(report.moved.values()) / _GIB:.2f}")
            cells += [f"{1e3 * best:.0f} to {1e3 * worst:.0f}", f"{low:.0f} to {high:.0f} %"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    config_door.run(main, "topology")
