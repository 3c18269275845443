"""What gisting saves on a model: FLOPs, time and memory, against no cache and a prompt cache.

python -m gist_jax.benchmark --model=DIR                                        times of a model
python -m gist_jax.benchmark --config=configs/llama_30m.py --random_weights     of a shape
python -m gist_jax.benchmark --config=configs/llama_7b.py                       FLOPs and bytes alone
python -m gist_jax.benchmark --config=configs/llama_7b.py --lengths=FILE.csv --output=OUT.csv
"""

import argparse
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from gist_jax import config_door
from gist_jax.benchmark import report
from gist_jax.benchmark.columns import Row
from gist_jax.benchmark.costs import Costs, costs
from gist_jax.benchmark.measure import Subject, measure
from gist_jax.benchmark.programs import MODES, Point
from gist_jax.benchmark.rows import counted
from gist_jax.benchmark.shapes import LENGTHS, estimated, read_lengths
from gist_jax.command_line import numbers, one_sentence_errors, parser
from gist_jax.errors import UserError
from gist_jax.inference.load import load
from gist_jax.models import family
from gist_jax.models.stack import unstacked
from gist_jax.table import write_csv
from gist_jax.training.run import model_config

# Fields of a point, their values by default, and what they mean.
GRID = {
    "instruction": ("50,100,200", "tokens of an instruction"),
    "input": ("40", "tokens of an input"),
    "output_tokens": ("32", "tokens written"),
    "batch": ("1,8", "requests at a time"),
    "gist_tokens": ("1", "tokens an instruction is compressed into"),
}


def main() -> None:
    arguments = parser(__doc__)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="training workdir, directory in Hugging Face format, or hub id")
    what.add_argument("--config", help="shape of a model, with --config.name=value for any field")
    arguments.add_argument("--random_weights", action="store_true", help="time the shape of --config")
    dtypes = dict(choices=["float32", "bfloat16"], help="if not float32, or the config's own")
    arguments.add_argument("--dtype", **dtypes)
    for name, (values, meaning) in GRID.items():
        several = f"{meaning}; several with commas"
        arguments.add_argument(f"--{name}", type=numbers, default=values, help=several)
    arguments.add_argument("--one_instruction", action="store_true", help="rows share it, and its cache")
    requests = f"CSV file of single requests in place of a grid: {', '.join(LENGTHS)}"
    arguments.add_argument("--lengths", help=requests)
    arguments.add_argument("--rounds", type=int, default=30, help="how often each program is timed")
    arguments.add_argument("--output", default="benchmark", help="folder, or with --lengths a CSV file")
    options, fields = arguments.parse_known_args()
    if unknown := [x for x in fields if not x.startswith("--config.")]:
        arguments.error(f"unrecognized argument {unknown[0]}")
    if options.rounds < 1:
        arguments.error("--rounds must be at least 1")
    if options.model is not None and (options.random_weights or options.lengths or fields):
        arguments.error("--random_weights, --lengths and --config.name=value go with --config")
    if options.lengths and options.random_weights:
        arguments.error("--lengths are counted, not timed: leave --random_weights out")
    with one_sentence_errors():
        config = (
            None
            if options.model is not None
            else config_door.load([f"--config={options.config}", *fields])
        )
        if options.lengths:
            _lengths(options, config)
        else:
            _grid(options, config)


def _lengths(options: argparse.Namespace, config: ConfigDict) -> None:
    output, model = pathlib.Path(options.output), model_config(config)
    if output.suffix != ".csv" or output.is_dir():
        raise UserError("with --lengths there must be --output=NAME.csv")
    described = read_lengths(options.lengths, options.output_tokens[0])
    dtype = _dtype(options, config)
    for _, point in described:
        point.check(model)
    rows: list[Row] = []
    for line, point in tqdm(described, desc="counting", unit="row"):
        for row in estimated(model, point, dtype, interpolate=True):
            first = {name: row.pop(name) for name in ("mode", "flops", "bytes_accessed", "cache_bytes")}
            if taken := line.keys() & (first | row).keys():
                raise UserError(
                    f"{options.lengths} has a column {taken.pop()!r}, which is one of the results'"
                )
            rows.append(line | first | row)
    write_csv(output, rows)


def _grid(options: argparse.Namespace, config: ConfigDict | None) -> None:
    grid = itertools.product(*(getattr(options, name) for name in GRID))
    points = [Point(*lengths, options.one_instruction) for lengths in grid]
    name, subject = _subject(options, config)
    model = model_config(config) if subject is None else subject.config
    dtype = _dtype(options, config) if subject is None else subject.dtype
    for point in points:
        point.check(model)
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    rounds = 1 if subject is None else options.rounds
    with tqdm(total=rounds * len(points), desc="benchmark", unit="round") as bar:
        for point in points:
            if subject is None:
                rows += estimated(model, point, dtype)
                bar.update()
            else:
                of_modes = {mode: costs(model, point, mode, dtype) for mode in MODES}
                rows += _measured(subject, point, of_modes, rounds, bar)
            write_csv(output / "results.csv", rows)  # what there is, if a later point fails
    device = report.device_name() if subject else "none: counted and estimated"
    print(report.as_text(rows))
    report.write(output, rows, report.environment(device, name, dtype))
    print(f"\nIn {output}/: index.html, results.csv, results.json, and the figures as PNG.")


def _dtype(options: argparse.Namespace, config: ConfigDict) -> str:
    dtype = options.dtype or config.dtype
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype must be float32 or bfloat16, not {dtype!r}")
    return dtype


def _measured(
    subject: Subject, point: Point, of_modes: dict[str, Costs], rounds: int, bar: tqdm
) -> list[Row]:
    """What was measured; or what was counted, if the device has not enough memory."""
    try:
        return measure(subject, point, of_modes, rounds, bar.update)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        bar.write(f"{point} does not fit into the device's memory", file=sys.stderr)
        return [counted(point, mode, of_modes) for mode in MODES]


def _subject(options: argparse.Namespace, config: ConfigDict | None) -> tuple[str, Subject | None]:
    """What to call the model, and the model if it is timed."""
    if config is None:
        lm = load(options.model, options.dtype or "float32")
        # A model that has no gist token yet takes as long with any other.
        gist_token = min(lm.tokenizer.gist_id, lm.config.vocab_size - 1)
        return options.model, Subject(lm.config, lm.params, gist_token)
    if not options.random_weights:
        return options.config, None
    model, dtype = model_config(config), jnp.dtype(_dtype(options, config))
    params = jax.jit(lambda key: unstacked(family.init(model, key, dtype)))(jax.random.key(0))
    return f"{options.config}, random weights", Subject(model, params, model.vocab_size - 1)


if __name__ == "__main__":
    main()
