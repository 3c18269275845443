"""Decode throughput of a model with random weights, beside that of transformers on the same CPU.

python -m gist_jax.benchmark.against_transformers --output=decode.csv

Needs PyTorch: pip install 'gist_jax[torch]'.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import transformers
from tqdm import tqdm

from gist_jax import config_door
from gist_jax.benchmark.columns import Row
from gist_jax.benchmark.costs import costs
from gist_jax.benchmark.latency import interleaved, quotient
from gist_jax.benchmark.programs import Point
from gist_jax.command_line import numbers, one_sentence_errors, output_file, parser
from gist_jax.data.tokenization import train_bpe
from gist_jax.errors import UserError
from gist_jax.inference.generate import generate
from gist_jax.interop.export import export
from gist_jax.models import family
from gist_jax.models.config import LlamaConfig
from gist_jax.models.stack import Params, unstacked
from gist_jax.table import aligned, write_csv
from gist_jax.training.run import model_config

# Prompts, int32 [B, T] without padding, and a number n of new tokens -> the likeliest, int [B, n].
Generate = Callable[[np.ndarray, int], np.ndarray]

OURS = "gist_jax"
NO_TOKEN = -1  # in place of the end of sequence: every output has its full length


def ours(params: Params, config: LlamaConfig, max_new: int) -> Generate:
    """`generate`, of parameters with layers apart."""
    shape = dict(config=config, condition="gist", gist_token=NO_TOKEN, max_new=max_new)

    def run(tokens: np.ndarray, count: int) -> np.ndarray:
        limits = np.int32(count), np.int32(NO_TOKEN), np.uint32(0)
        output = generate(params, tokens, np.ones_like(tokens), None, *limits, None, **shape)
        return np.asarray(output)[:, :count]

    return run


def theirs(params: Params, config: LlamaConfig, compiles: bool) -> dict[str, Generate]:
    """transformers' `generate` with each kind of cache, and compiled."""
    import torch  # optional: `main` has looked for it

    tokenizer = train_bpe(["a"], 260)  # belongs to what is exported; nothing is encoded
    with tempfile.TemporaryDirectory() as directory:
        export(directory, params, config, tokenizer, num_gist_tokens=0, condition="gist")
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    def with_options(**options) -> Generate:
        def run(tokens: np.ndarray, count: int) -> np.ndarray:
            ids = torch.from_numpy(tokens).long()
            settings = dict(attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0)
            output = model.generate(ids, max_new_tokens=count, **settings, **options)
            return output[:, tokens.shape[1] :].numpy()

        return run

    runs = {f"{kind} cache": with_options(cache_implementation=kind) for kind in ("static", "dynamic")}
    if compiles:
        how = transformers.CompileConfig(mode="default", fullgraph=False)
        how._compile_all_devices = True  # without it transformers compiles for accelerators alone
        runs["compiled"] = with_options(cache_implementation="static", compile_config=how)
    return runs


def read_bandwidth() -> float:
    """Bytes/s of PyTorch's sum over 1 GiB of float32, the best of ten."""
    import torch

    array = torch.ones(2**28)

    def seconds() -> float:
        start = time.perf_counter()
        array.sum()
        return time.perf_counter() - start

    return array.nbytes / min(seconds() for _ in range(10))


def measured(
    runs: dict[str, Generate], tokens: np.ndarray, count: int, rounds: int, step_bytes: int, bar: tqdm
) -> list[Row]:
    """A row for each implementation. A step decodes one token of every row of the batch.

    Args:
      tokens: prompts, int32 `[B, T]`.
      count: of new tokens. The prefill gives the first, whose time is taken off.
      step_bytes: that a step must read.
    """
    timed = {(name, n): functools.partial(runs[name], tokens, n) for name in runs for n in (1, count)}
    seconds = interleaved(timed, rounds, bar.update)
    steps = {name: (seconds[name, count] - seconds[name, 1]) / (count - 1) for name in runs}
    outputs = {name: run(tokens, count) for name, run in runs.items()}
    rows: list[Row] = []
    for name in runs:
        if (step := float(np.median(steps[name]))) <= 0:
            raise UserError("so few tokens cannot be timed: give more --output_tokens")
        ratio, low, high = quotient(steps[name], steps[OURS])
        rows.append(
            dict(
                implementation=name,
                batch=len(tokens),
                tokens_per_second=len(tokens) / step,
                milliseconds_per_step=1e3 * step,
                gigabytes_per_second=step_bytes / step / 1e9,
                ours_by_it=ratio,
                ours_by_it_low=low,
                ours_by_it_high=high,
                equal_tokens=float(np.mean(outputs[name] == outputs[OURS])),
            )
        )
    return rows


def compare(options: argparse.Namespace) -> list[Row]:
    """Measures what the options of `main` say.

    Raises:
      UserError: if PyTorch is missing, or the options describe nothing that can be measured.
    """
    try:
        import torch
    except ImportError:
        raise UserError("the comparison needs PyTorch: pip install 'gist_jax[torch]'") from None
    config = model_config(config_door.load([f"--config={options.config}"]))
    if not isinstance(config, LlamaConfig):
        raise UserError(f"{options.config} describes no model of the LLaMA family")
    count, rows = options.output_tokens, []
    points = [Point(0, options.prompt - 1, count, batch, 1, False) for batch in options.batch]
    for point in points:
        point.check(config)
    params = jax.jit(lambda key: unstacked(family.init(config, key)))(jax.random.key(0))
    runs = {OURS: ours(params, config, count), **theirs(params, config, options.compile)}
    with tqdm(total=len(points) * options.rounds, unit="round") as bar:
        for point in points:
            shape, rng = (point.batch, options.prompt), np.random.default_rng(0)
            tokens = rng.integers(config.vocab_size, size=shape, dtype=np.int32)
            step_bytes = costs(config, point, "none", "float32").next_token.bytes
            rows += measured(runs, tokens, count, options.rounds, step_bytes, bar)
    modules = ", ".join(
        f"{module.__name__} {module.__version__}" for module in (jax, torch, transformers)
    )
    print(
        f"{modules}; {torch.get_num_threads()} threads of PyTorch sum {read_bandwidth() / 1e9:.1f} GB/s"
    )
    return rows


def as_text(rows: list[Row]) -> str:
    """A line for each row."""
    lines = [["", "batch", "tokens/s", "ms/step", "GB/s", "ours/it", "95 %", "equal tokens"]]
    for row in rows:
        name, batch, speed, time_of_step, bandwidth, ratio, low, high, equal = row.values()
        speeds = [f"{speed:.0f}", f"{time_of_step:.2f}", f"{bandwidth:.1f}"]
        lines.append(
            [name, str(batch), *speeds, f"{ratio:.2f}", f"{low:.2f} to {high:.2f}", f"{equal:.1%}"]
        )
    return aligned(lines, left=1)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--config", default="configs/llama_30m.py", help="its model is measured")
    arguments.add_argument("--batch", type=numbers, default="1,8", help="sizes, with commas between")
    arguments.add_argument("--prompt", type=int, default=140, help="tokens")
    arguments.add_argument("--output_tokens", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--compile", action="store_true", help="transformers with torch.compile, too")
    arguments.add_argument("--output", type=output_file, help="CSV file for the results")
    options = arguments.parse_args()
    if min(options.rounds, options.output_tokens - 1, options.prompt - 1) < 1:
        arguments.error("--rounds must be at least 1, --output_tokens and --prompt at least 2")
    jax.config.update("jax_platforms", "cpu")
    with one_sentence_errors():
        rows = compare(options)
        print(as_text(rows))
        if options.output:
            write_csv(options.output, rows)


if __name__ == "__main__":
    main()
