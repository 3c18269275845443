"""Compiles a config for TPUs or GPUs that are not there: does it fit, and how fast can it be?

python launch/aot_compile.py --config=llama_7b:v5e-64 --topology=v5e-64
python launch/aot_compile.py --config=llama_7b:8xH100 --topology=8xH100
python launch/aot_compile.py --config=llama_7b --topology=v4-16,v4-32,v4-64 --rows_per_chip=4

For TPUs it needs libtpu: pip install 'gist_jax[tpu]'. For GPUs it needs jax-cuda12-plugin and
jax-cuda12-pjrt of jax's version, and nvidia-cuda-nvcc-cu12, best in an environment of their own. XLA
chooses the kernels of matrix products by trying them, which it cannot without a GPU: it takes those it
has by default. Exits with 1 when something does not fit.
"""

import argparse
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
from tqdm import tqdm

from gist_jax import cli
from gist_jax.errors import UserError
from gist_jax.io import format_table, write_json
from gist_jax.training.aot import PROGRAMS, Report, compile_ahead
from gist_jax.training.topology import devices_of
from gist_jax.training.validation import validate

_GIB = 2**30


def main() -> None:
    """Runs the command."""
    arguments = cli.parser(__doc__)
    cli.add_config(arguments, required=True)
    arguments.add_argument(
        "--topology",
        required=True,
        type=_names,
        help="TPU slices (v5e-64, v5e:8x8) or GPUs (8xH100; 2x8xH100: two nodes), with commas",
    )
    arguments.add_argument(
        "--programs", type=_names, default=",".join(PROGRAMS), help="which to compile, with commas"
    )
    arguments.add_argument(
        "--rows_per_chip", type=int, help="rows of a step for every chip, not config.data.batch_size"
    )
    arguments.add_argument("--output", type=cli.output_file, help="JSON file to write the results to")
    options, settings = cli.parse_with_config(arguments)
    if unknown := set(options.programs) - set(PROGRAMS):
        arguments.error(f"--programs has {unknown.pop()!r}, which is none of {', '.join(PROGRAMS)}")
    if options.rows_per_chip is not None and options.rows_per_chip < 1:
        arguments.error("--rows_per_chip must be at least 1")
    with cli.exit_on_user_error():
        _compile(options, settings)


def _names(text: str) -> list[str]:
    """An argument type: words with commas between."""
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError("it is empty")
    return names


def _compile(options: argparse.Namespace, settings: list[str]) -> None:
    """Compiles every program for every topology, and prints what they need and cost.

    Raises:
      UserError: if one does not fit.
    """
    jax.config.update("jax_platforms", "cpu")  # or jax looks for the TPU
    config = cli.load_config(options.config, settings)
    machines = {name: devices_of(name) for name in options.topology}
    for devices in machines.values():
        validate(config, devices[0].platform)
    reports: list[tuple[str, Report]] = []
    work = [(name, program) for name in machines for program in options.programs]
    for name, program in tqdm(work, desc="compiling", unit="program"):
        if options.rows_per_chip is not None:
            config.data.batch_size = options.rows_per_chip * len(machines[name])
        reports.append((name, compile_ahead(config, machines[name], program)))
    if options.output:
        write_json(options.output, [_as_json(name, report) for name, report in reports])
    if len(machines) == 1:
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


def _as_json(topology: str, report: Report) -> dict:
    """The entry of a report in the JSON file: its fields, and what follows from them."""
    times = report.roofline
    return {
        "topology": topology,
        **report._asdict(),
        "roofline": times._asdict(),
        "chips": report.chips,
        "excess": report.excess,
        "memory_fraction": report.memory_fraction,
        "seconds": [times.best, times.worst],
        "utilisation": [report.utilisation(times.worst), report.utilisation(times.best)],
    }


def _more_memory(report: Report) -> str:
    """What lets a program have more memory than JAX takes by default."""
    return (
        f"set XLA_PYTHON_CLIENT_MEM_FRACTION={report.memory_fraction}: by default JAX takes "
        f"{report.preallocated / _GIB:.2f} GiB"
    )


def _text(topology: str, report: Report) -> str:
    """Formats a report for a terminal."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    lines = [f"{report.program} on {topology}: {report.chips} chips ({mesh})"]

    def add(name: str, value: float, unit: str, digits: int = 2) -> None:
        lines.append(f"  {name:22}{value:10.{digits}f} {unit}")

    for name in ("parameters", "frozen", "optimizer", "cache", "activations"):
        if size := getattr(report, name):
            add(name, size / _GIB, "GiB a chip")
    add("total", report.total / _GIB, f"GiB a chip of {report.memory / _GIB:.2f}")
    if report.memory_fraction is not None:
        lines.append(f"  {_more_memory(report)}")
    add("FLOPs", report.flops / 1e12, f"TFLOP, {report.tokens:,} tokens")
    if report.excess:
        return "\n".join([*lines, "  DOES NOT FIT", ""])
    for kind, size in report.bytes_sent.items():
        if size:
            add(kind, size / _GIB, "GiB sent by a chip")
    if report.bytes_between_nodes:
        add("of these", report.bytes_between_nodes / _GIB, "GiB to other nodes")
    for name, seconds in report.roofline._asdict().items():
        if seconds or name != "network":
            add(name, 1e3 * seconds, "ms")
    best, worst = report.roofline.best, report.roofline.worst
    add("step", 1e3 * best, f"to {1e3 * worst:.2f} ms")
    low, high = (100 * report.utilisation(seconds) for seconds in (worst, best))
    add("model FLOPs used", low, f"to {high:.1f} %", digits=1)
    return "\n".join([*lines, ""])


def _table(reports: list[tuple[str, Report]]) -> str:
    """Formats a row for each topology and program, in Markdown."""
    titles = [
        "program",
        "machine",
        "chips",
        "mesh",
        "tokens",
        "GiB a chip",
        "of memory",
        "GiB sent",
        "ms",
        "FLOPs used",
    ]
    lines = [titles]
    for name, report in reports:
        mesh = "×".join(map(str, report.mesh.values()))
        cells = [report.program, name, str(report.chips), mesh, f"{report.tokens:,}"]
        cells += [f"{report.total / _GIB:.2f}", f"{100 * report.total / report.memory:.0f} %"]
        if report.excess:
            cells += ["does not fit", "", ""]
        else:
            best, worst = report.roofline.best, report.roofline.worst
            low, high = (100 * report.utilisation(seconds) for seconds in (worst, best))
            cells.append(f"{sum(report.bytes_sent.values()) / _GIB:.2f}")
            cells += [f"{1e3 * best:.0f} to {1e3 * worst:.0f}", f"{low:.0f} to {high:.0f} %"]
        lines.append(cells)
    more = [(name, report) for name, report in reports if report.memory_fraction is not None]
    below = [f"{report.program} on {name}: {_more_memory(report)}" for name, report in more]
    return "\n".join([format_table(lines, left=2, markdown=True), *below])


if __name__ == "__main__":
    main()
