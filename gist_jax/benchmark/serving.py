"""Continuous batching beside batches of a fixed size, and beside one request after the other.

python -m gist_jax.benchmark.serving --config=llama_30m --output=table.csv

The requests, with random weights and texts, come in an order, each with one of some gist caches, an
input of 8 to 40 tokens and an output of 4 to 64. Batches of a fixed size take them in that order, and
write for as long as their longest output. All are measured in turn, and their tokens compared.
"""

import argparse
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from gist_jax import cli
from gist_jax.benchmark.latency import interleaved, paired_ratio
from gist_jax.benchmark.rows import Row as TableRow
from gist_jax.errors import UserError
from gist_jax.inference.buckets import bucket, padded_rows
from gist_jax.inference.continuous import Programs, Row, write_rows
from gist_jax.inference.decode import generate
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.parameters import for_inference
from gist_jax.inference.prefill import compress
from gist_jax.io import format_table, write_csv
from gist_jax.models import registry
from gist_jax.models.config import ModelConfig
from gist_jax.training.run import model_config

GIST, NO_TOKEN = 3, -1  # NO_TOKEN in place of the end of sequence: every output has its full length
INSTRUCTION, INPUTS, OUTPUTS = 60, (8, 41), (4, 65)  # tokens; of the last two the limits, exclusive
ONE = "one by one"


def requests(config: ModelConfig, gists: GistCache, count: int) -> list[Row]:
    """The requests, always the same."""
    rng = np.random.default_rng(1)
    lengths, limits = rng.integers(*INPUTS, count), rng.integers(*OUTPUTS, count)
    caches = [gists[i] for i in range(len(gists))]
    return [
        Row(rng.integers(GIST + 1, config.vocab_size, length).tolist(), caches[i % len(caches)], limit)
        for i, (length, limit) in enumerate(zip(lengths.tolist(), limits.tolist(), strict=True))
    ]


def continuous(programs: Programs, make: Callable[[], list[Row]], slots: int) -> list[list[int]]:
    """The outputs of requests that are written in slots."""
    rows = make()
    for _ in write_rows(programs, rows, slots):
        pass
    return [row.output for row in rows]


def fixed(
    programs: Programs, gists: GistCache, make: Callable[[], list[Row]], batch: int
) -> list[list[int]]:
    """The outputs of requests that are written in batches of a size, each as long as its longest."""
    rows, outputs = make(), []
    for start in range(0, len(rows), batch):
        chosen = rows[start : start + batch]
        tokens, segment = padded_rows([row.ids for row in chosen], programs.pad_id)
        longest = max(row.limit for row in chosen)
        written = generate(
            programs.params,
            tokens,
            segment,
            gists[(start + np.arange(len(tokens))) % len(gists)].bare(programs.dtype),
            np.int32(longest),
            np.int32(NO_TOKEN),
            np.uint32(0),
            None,
            config=programs.config,
            condition=programs.condition,
            gist_token=GIST,
            max_new=bucket(longest, smallest=16),
        )
        rows_written = zip(np.asarray(written).tolist(), chosen, strict=False)
        outputs += [output[: row.limit] for output, row in rows_written]
    return outputs


def measure(settings: ConfigDict, options: argparse.Namespace) -> list[TableRow]:
    """A row of the table for each way to answer the requests; options are those of `main`.

    Args:
      settings: a config, whose model is measured.

    Raises:
      UserError: if the tokens are not those of one request after the other.
    """
    config = model_config(settings)
    init = jax.jit(functools.partial(registry.init, config, dtype=jnp.dtype(options.dtype)))
    params = for_inference(init(jax.random.key(0)), options.dtype, config, None, donate=True)
    programs = Programs(params, config, "gist", GIST, NO_TOKEN, 0, None, None)
    tokens = np.random.default_rng(0).integers(
        GIST + 1, config.vocab_size, (options.gists, INSTRUCTION), dtype=np.int32
    )
    tokens[:, -1] = GIST
    of_tokens = programs.params, tokens, np.ones_like(tokens)
    gists = compress(*of_tokens, config=config, gist_token=GIST, num_kept=1)
    make = functools.partial(requests, config, gists, options.requests)
    runs: dict[str, Callable[[], list[list[int]]]] = {
        ONE: functools.partial(fixed, programs, gists, make, 1)
    }
    for batch in options.batch:
        runs[f"batches of {batch}"] = functools.partial(fixed, programs, gists, make, batch)
    for slots in options.slots:
        runs[f"{slots} slots"] = functools.partial(continuous, programs, make, slots)
    expected = runs[ONE]()
    total = sum(map(len, expected))
    with tqdm(total=options.rounds, unit="round") as bar:
        seconds = interleaved(runs, options.rounds, bar.update)
    best = min((name for name in runs if "batches" in name), key=lambda name: np.median(seconds[name]))
    return [_row(name, runs[name](), expected, seconds, best, total) for name in runs]


def _row(
    name: str,
    outputs: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
    seconds: dict[str, np.ndarray],
    best: str,
    total: int,
) -> TableRow:
    equal = np.mean([list(a) == list(b) for a, b in zip(outputs, expected, strict=True)])
    if equal < 1:
        raise UserError(f"{name}: only {equal:.1%} of the outputs are those of {ONE}")
    columns: TableRow = {"requests": name, "seconds": float(np.median(seconds[name]))}
    columns["tokens_per_second"] = total / columns["seconds"]
    for title, other in [("one_by_one", ONE), ("best_batch", best)]:
        limits = paired_ratio(seconds[other], seconds[name])
        names = ("", "_low", "_high")
        columns |= {f"{title}{end}": value for end, value in zip(names, limits, strict=True)}
    return columns


def as_text(table: Sequence[TableRow]) -> str:
    """Formats a line for each row."""
    lines = [["", "s", "tokens/s", f"times {ONE} (95 %)", "times the best batch (95 %)"]]
    for row in table:
        ratios = [
            f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"
            for name in ("one_by_one", "best_batch")
        ]
        speed = f"{row['seconds']:.2f}", f"{row['tokens_per_second']:,.0f}"
        lines.append([row["requests"], *speed, *ratios])
    return format_table(lines)


def main() -> None:
    """Runs the command."""
    arguments = cli.parser(__doc__)
    cli.add_config(arguments, default="llama_30m")
    arguments.add_argument("--dtype", default="float32", choices=cli.DTYPES)
    arguments.add_argument("--requests", type=int, default=64)
    arguments.add_argument("--gists", type=int, default=16, help="caches that they share")
    of_slots = "requests at a time, with commas between"
    arguments.add_argument("--slots", type=cli.positive_ints, default="16,32", help=of_slots)
    arguments.add_argument("--batch", type=cli.positive_ints, default="4,8,16,32", help=of_slots)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--output", type=cli.output_file, help="CSV file for the results")
    options, settings = cli.parse_with_config(arguments)
    if min(options.requests, options.gists, options.rounds) < 1:
        arguments.error("--requests, --gists and --rounds must be at least 1")
    with cli.exit_on_user_error():
        cli.set_up_libraries()
        table = measure(cli.load_config(options.config, settings), options)
        print(as_text(table))
        if options.output:
            write_csv(options.output, table)


if __name__ == "__main__":
    main()
