"""Measures what gisting saves on a model: FLOPs, time and memory, against no cache and a prompt cache.

python -m gist_jax.benchmark --model=DIR                                        times of a model
python -m gist_jax.benchmark --config=llama_30m --random_weights     of a shape
python -m gist_jax.benchmark --config=llama_7b                       FLOPs and bytes alone
python -m gist_jax.benchmark --config=llama_7b --lengths=FILE.csv --output=OUT.csv
"""

import argparse
import itertools
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from gist_jax import cli
from gist_jax.benchmark import report
from gist_jax.benchmark.estimate import LENGTHS, estimated, read_lengths
from gist_jax.benchmark.measure import BenchmarkModel, measure
from gist_jax.benchmark.rows import Row
from gist_jax.benchmark.workload import Workload
from gist_jax.errors import UserError
from gist_jax.inference.load import load
from gist_jax.inference.parameters import for_inference, load_shardings
from gist_jax.io import write_csv
from gist_jax.models import registry
from gist_jax.sharding import inference_mesh
from gist_jax.training.run import model_config

# Fields of a workload, their values by default, and what they mean.
GRID = {
    "instruction": ("50,100,200", "tokens of an instruction"),
    "input": ("40", "tokens of an input"),
    "output_tokens": ("32", "tokens written"),
    "batch": ("1,8", "requests at a time"),
    "gist_tokens": ("1", "tokens an instruction is compressed into"),
}


def main() -> None:
    """Runs the command."""
    arguments = cli.parser(__doc__)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help=cli.MODEL_HELP)
    cli.add_config(what, help="shape of a model")
    arguments.add_argument("--random_weights", action="store_true", help="time the shape of --config")
    arguments.add_argument("--dtype", choices=cli.DTYPES, help="if not float32, or the config's own")
    for name, (values, meaning) in GRID.items():
        several = f"{meaning}; several with commas"
        arguments.add_argument(f"--{name}", type=cli.positive_ints, default=values, help=several)
    arguments.add_argument("--one_instruction", action="store_true", help="rows share it, and its cache")
    requests = f"CSV file of single requests in place of a grid: {', '.join(LENGTHS)}"
    arguments.add_argument("--lengths", help=requests)
    cli.add_mesh(arguments)
    arguments.add_argument("--rounds", type=int, default=30, help="how often each program is timed")
    arguments.add_argument("--output", default="benchmark", help="folder, or with --lengths a CSV file")
    options, settings = cli.parse_with_config(arguments)
    if options.rounds < 1:
        arguments.error("--rounds must be at least 1")
    if options.model is not None and (options.random_weights or options.lengths or settings):
        arguments.error("--random_weights, --lengths and --config.name=value go with --config")
    if options.lengths and options.random_weights:
        arguments.error("--lengths are counted, not timed: leave --random_weights out")
    with cli.exit_on_user_error():
        cli.set_up_libraries()
        config = None if options.model is not None else cli.load_config(options.config, settings)
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
    for _, workload in described:
        workload.check(model)
    rows: list[Row] = []
    for line, workload in tqdm(described, desc="counting", unit="row"):
        for row in estimated(model, workload, dtype, interpolate=True):
            first = {name: row.pop(name) for name in ("mode", "flops", "bytes_accessed", "cache_bytes")}
            if taken := line.keys() & (first | row).keys():
                raise UserError(
                    f"{options.lengths} has a column {taken.pop()!r}, which is one of the results'"
                )
            rows.append(line | first | row)
    write_csv(output, rows)


def _grid(options: argparse.Namespace, config: ConfigDict | None) -> None:
    grid = itertools.product(*(getattr(options, name) for name in GRID))
    workloads = [Workload._make((*lengths, options.one_instruction)) for lengths in grid]
    name, timed = _model(options, config)
    model = model_config(config) if timed is None else timed.config
    dtype = _dtype(options, config) if timed is None else timed.dtype
    for workload in workloads:
        workload.check(model)
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    rounds = 1 if timed is None else options.rounds
    with tqdm(total=rounds * len(workloads), desc="benchmark", unit="round") as bar:
        for workload in workloads:
            if timed is None:
                rows += estimated(model, workload, dtype)
                bar.update()
            else:
                rows += measure(timed, workload, rounds, bar.update)
            write_csv(output / "results.csv", rows)  # what there is, if a later workload fails
    device = report.device_name() if timed else "none: counted and estimated"
    print(report.as_text(rows))
    report.write(output, rows, report.environment(device, name, dtype))
    print(f"\nIn {output}/: index.html, results.csv, results.json, and the plots as PNG.")


def _dtype(options: argparse.Namespace, config: ConfigDict) -> str:
    dtype = options.dtype or config.dtype
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype must be float32 or bfloat16, not {dtype!r}")
    return dtype


def _model(options: argparse.Namespace, config: ConfigDict | None) -> tuple[str, BenchmarkModel | None]:
    """What to call the model, and the model if it is timed."""
    sizes = cli.mesh_of(options)
    if config is None:
        lm = load(options.model, dtype=options.dtype or "float32", mesh=sizes)
        # A model that has no gist token yet takes as long with any other.
        gist_token = min(lm.tokenizer.gist_id, lm.config.vocab_size - 1)
        return options.model, BenchmarkModel(lm.config, lm.params, gist_token, lm.mesh)
    if not options.random_weights:
        return options.config, None
    model, dtype = model_config(config), jnp.dtype(_dtype(options, config))
    mesh = None if sizes is None else inference_mesh(sizes)
    shardings = load_shardings(model, mesh)
    make = jax.jit(lambda: registry.init(model, jax.random.key(0), dtype), out_shardings=shardings)
    params = for_inference(make(), dtype.name, model, mesh, donate=True)
    timed = BenchmarkModel(model, params, model.vocab_size - 1, mesh)
    return f"{options.config}, random weights", timed


if __name__ == "__main__":
    main()
