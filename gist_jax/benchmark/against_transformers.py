"""A LLaMA with random weights beside the same weights in transformers, on one CPU.

python -m gist_jax.benchmark.against_transformers --output=table.csv

- train: a step of AdamW (fused, in PyTorch), of rows without padding
- prefill: the time to the first token
- decode: a token of every row, the prefill taken off
- requests: 64 prompts of 16 to 192 tokens and outputs of 4 to 32, so many at a time, in their order

All are measured in turn, in a random order, and what they compute is compared: losses, or tokens.

Needs PyTorch: pip install 'gist_jax[torch]'.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from gist_jax import cli
from gist_jax.benchmark import pytorch
from gist_jax.benchmark.latency import interleaved, paired_ratio
from gist_jax.benchmark.programs import Programs, our_programs
from gist_jax.benchmark.rows import Row
from gist_jax.benchmark.workload import Workload
from gist_jax.errors import UserError
from gist_jax.io import format_table, write_csv
from gist_jax.models import registry
from gist_jax.models.config import LlamaConfig
from gist_jax.training.run import model_config

OURS = "gist_jax"
REQUESTS = 64
TASKS = ("train", "prefill", "decode", "requests")

# Functions to be measured in turn -> the seconds of each in every round.
Timer = Callable[[Mapping[Any, Callable[[], object]]], dict[Any, np.ndarray]]
# Seconds of every round by implementation, and how far what it computed agrees with ours.
Measured = tuple[dict[str, np.ndarray], dict[str, float]]


def measure_training(compared: Mapping[str, Programs], timer: Timer, tokens: np.ndarray) -> Measured:
    """Seconds of a step, and the largest relative difference of a loss."""
    steps = {name: one.trainer(tokens) for name, one in compared.items()}
    losses: dict[str, list[float]] = {name: [] for name in compared}

    def step(name: str) -> None:
        losses[name].append(steps[name]())

    seconds = timer({name: functools.partial(step, name) for name in compared})
    ours = np.array(losses[OURS])
    return seconds, {name: float(np.max(np.abs(x / ours - 1))) for name, x in losses.items()}


def measure_prefill(compared: Mapping[str, Programs], timer: Timer, tokens: np.ndarray) -> Measured:
    """Seconds to the first token, and the share of equal tokens."""
    runs = {name: functools.partial(one.generate, tokens, 1) for name, one in compared.items()}
    return timer(runs), _equal({name: run() for name, run in runs.items()})


def measure_decode(
    compared: Mapping[str, Programs], timer: Timer, tokens: np.ndarray, count: int
) -> Measured:
    """Seconds of a token of every row, and the share of equal tokens."""
    runs = {
        (name, n): functools.partial(one.generate, tokens, n)
        for name, one in compared.items()
        for n in (1, count)
    }
    seconds = timer(runs)
    steps = {name: (seconds[name, count] - seconds[name, 1]) / (count - 1) for name in compared}
    if min(float(np.median(x)) for x in steps.values()) <= 0:
        raise UserError("so few tokens cannot be timed: give more --output_tokens")
    return steps, _equal({name: one.generate(tokens, count) for name, one in compared.items()})


def measure_requests(
    compared: Mapping[str, Programs], timer: Timer, vocab_size: int, batch: int
) -> Measured:
    """Seconds of all requests, and the share of equal tokens."""
    rng = np.random.default_rng(0)
    lengths, counts = rng.integers(16, 193, REQUESTS), rng.integers(4, 33, REQUESTS)
    prompts = [rng.integers(vocab_size, size=length, dtype=np.int32) for length in lengths]
    runs = {
        name: functools.partial(one.answer, prompts, counts.tolist(), batch)
        for name, one in compared.items()
    }
    seconds = timer(runs)
    return seconds, _equal({name: np.concatenate(run()) for name, run in runs.items()})


def _equal(outputs: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.mean(output == outputs[OURS])) for name, output in outputs.items()}


def compare(options: argparse.Namespace) -> list[Row]:
    """Measures what the options of `main` say, and prints the versions.

    Raises:
      UserError: if PyTorch is missing, or the options describe nothing that can be measured.
    """
    settings = cli.load_config(options.config)
    settings.update(dtype="float32", param_dtype="float32")
    same = dict(name="adamw", schedule="constant", warmup_steps=0, moment_dtype="float32")
    settings.optimizer.update(same, weight_decay=0.0, accumulate=1)
    config = model_config(settings)
    if not isinstance(config, LlamaConfig):
        raise UserError(f"{options.config} describes no model of the LLaMA family")
    for batch in options.batch:
        Workload(0, options.prompt - 1, options.output_tokens, batch, 1, False).check(config)
    for batch, length in options.shapes:
        Workload(0, length - 1, 1, batch, 1, False).check(config)
    params = jax.jit(lambda key: registry.init(config, key))(jax.random.key(0))
    ours = our_programs(params, config, settings)
    measured = _measured(config.vocab_size, options)
    chosen = [task for name in TASKS for task in measured if task[0] == name and name in options.tasks]
    table: list[Row] = []
    versions = ""
    with (
        pytorch.exported(params, config) as directory,
        tqdm(total=len(chosen) * options.rounds, unit="round") as bar,
    ):

        def timer(runs: Mapping[Any, Callable[[], object]]) -> dict[Any, np.ndarray]:
            return interleaved(runs, options.rounds, bar.update)

        for task, shape in chosen:
            bar.set_description(f"{task} {shape}")
            compared = {OURS: ours}
            with contextlib.ExitStack() as processes:
                # New ones for every task: what they keep of one, such as caches of its length or
                # programs for any shape, would slow down the next.
                for name, compiles in [("transformers", False), ("torch.compile", True)]:
                    # transformers compiles no prefill.
                    if not compiles or (options.compile and task != "prefill"):
                        process = pytorch.started(directory, settings, compiles)
                        compared[name], describe = processes.enter_context(process)
                        versions = versions or describe()
                seconds, agreement = measured[task, shape](compared, timer)
            for name in compared:
                speedup, low, high = paired_ratio(seconds[name], seconds[OURS])
                table.append(
                    dict(
                        task=task,
                        shape=shape,
                        implementation=name,
                        milliseconds=1e3 * float(np.median(seconds[name])),
                        speedup=speedup,
                        speedup_low=low,
                        speedup_high=high,
                        agreement=agreement[name],
                    )
                )
    print(f"jax {jax.__version__}; {versions}")
    return table


def _measured(
    vocab_size: int, options: argparse.Namespace
) -> dict[tuple[str, str], Callable[[Mapping[str, Programs], Timer], Measured]]:
    """What measures each task at each shape."""

    def tokens(batch: int, length: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.integers(vocab_size, size=(batch, length), dtype=np.int32)

    measured: dict[tuple[str, str], Callable[[Mapping[str, Programs], Timer], Measured]] = {}
    for batch, length in options.shapes:
        rows = tokens(batch, length)
        measured["train", f"{batch} x {length}"] = functools.partial(measure_training, tokens=rows)
        measured["prefill", f"{batch} x {length}"] = functools.partial(measure_prefill, tokens=rows)
    for batch in options.batch:
        shape, rows = f"{batch} x {options.prompt}", tokens(batch, options.prompt)
        decode = functools.partial(measure_decode, tokens=rows, count=options.output_tokens)
        requests = functools.partial(measure_requests, vocab_size=vocab_size, batch=batch)
        measured["decode", shape] = decode
        measured["requests", f"{batch} at a time"] = requests
    return measured


def check_agreement(table: list[Row]) -> None:
    """Raises a UserError where an implementation computed something else than ours."""
    for row in table:
        value = row["agreement"]
        if not (value < 1e-3 if row["task"] == "train" else value > 0.9):
            raise UserError(
                f"{row['implementation']} does not agree in {row['task']} {row['shape']}: the times "
                "say nothing"
            )


def as_text(table: list[Row]) -> str:
    """Formats a line for each row."""
    lines = [["", "", "", "ms", "ours is faster by", "95 %", "agreement"]]
    for row in table:
        task, shape, name, time, ratio, low, high, agreement = row.values()
        agrees = f"losses within {agreement:.0e}" if task == "train" else f"{agreement:.1%} of tokens"
        of_ratio = ["", "", ""] if name == OURS else [f"{ratio:.2f}", f"{low:.2f} to {high:.2f}", agrees]
        lines.append([task, shape, name, f"{time:.4g}", *of_ratio])
    return format_table(lines, left=3)


def shapes(text: str) -> list[tuple[int, int]]:
    """An argument type: rows x tokens, with commas between."""
    found = [cli.positive_ints(shape.replace("x", ",")) for shape in text.split(",")]
    if any(len(shape) != 2 or shape[1] < 2 for shape in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not rows x tokens, as in 8x128,4x512")
    return [(rows, tokens) for rows, tokens in found]


def tasks(text: str) -> list[str]:
    """An argument type: some of TASKS, with commas between."""
    found = text.split(",")
    if unknown := set(found) - set(TASKS):
        raise argparse.ArgumentTypeError(f"{unknown.pop()!r} is not one of {', '.join(TASKS)}")
    return found


def main() -> None:
    """Runs the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--config", default="llama_30m", help="its model is measured")
    arguments.add_argument("--tasks", type=tasks, default=",".join(TASKS), help="with commas between")
    of_rows = "rows x tokens of training and prefill, with commas between"
    arguments.add_argument("--shapes", type=shapes, default="8x128,4x512", help=of_rows)
    of_batch = "sizes for decoding and requests, with commas between"
    arguments.add_argument("--batch", type=cli.positive_ints, default="1,8", help=of_batch)
    arguments.add_argument("--prompt", type=int, default=140, help="tokens before those decoded")
    arguments.add_argument("--output_tokens", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--compile", action="store_true", help="transformers with torch.compile, too")
    arguments.add_argument("--output", type=cli.output_file, help="CSV file for the results")
    options = arguments.parse_args()
    if min(options.rounds, options.output_tokens - 1, options.prompt - 1) < 1:
        arguments.error("--rounds must be at least 1, --output_tokens and --prompt at least 2")
    jax.config.update("jax_platforms", "cpu")
    with cli.exit_on_user_error():
        cli.set_up_libraries()
        table = compare(options)
        print(as_text(table))
        if options.output:
            write_csv(options.output, table)
        check_agreement(table)


if __name__ == "__main__":
    main()
