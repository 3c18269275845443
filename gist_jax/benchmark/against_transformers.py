"""Decode throughput of a model with random weights, against that of transformers on the same CPU.

python -m gist_jax.benchmark.against_transformers --output=decode.csv

Needs PyTorch: pip install 'gist_jax[torch]'.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import transformers
from tqdm import tqdm

from gist_jax import cli
from gist_jax.benchmark.costs import costs
from gist_jax.benchmark.latency import interleaved, quotient
from gist_jax.benchmark.rows import Row
from gist_jax.benchmark.workload import Workload
from gist_jax.data.tokenization import train_bpe
from gist_jax.errors import UserError
from gist_jax.inference.decode import generate
from gist_jax.interop.export import export
from gist_jax.io import format_table, write_csv
from gist_jax.models import registry
from gist_jax.models.config import LlamaConfig
from gist_jax.models.stack import Params, unstacked
from gist_jax.training.run import model_config

# Prompts, int32 [B, T] without padding, and a number n of new tokens -> the likeliest, int [B, n].
Generate = Callable[[np.ndarray, int], np.ndarray]

OURS = "gist_jax"
NO_TOKEN = -1  # in place of the end of sequence: every output has its full length


def ours(params: Params, config: LlamaConfig, max_new: int) -> Generate:
    """Our `generate`; takes parameters with unrolled layers."""
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

    def with_options(**options: Any) -> Generate:
        def run(tokens: np.ndarray, count: int) -> np.ndarray:
            ids = torch.from_numpy(tokens).long()
            settings = dict(attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0)
            output = model.generate(ids, max_new_tokens=count, **settings, **options)
            return output[:, tokens.shape[1] :].numpy()

        return run

    runs = {f"{kind} cache": with_options(cache_implementation=kind) for kind in ("static", "dynamic")}
    if compiles:
        how = transformers.CompileConfig(mode="default", fullgraph=False)
        # Without it transformers compiles for accelerators alone.
        how._compile_all_devices = True  # type: ignore[assignment]  # declared None
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


def measure(
    runs: dict[str, Generate], tokens: np.ndarray, count: int, rounds: int, step_bytes: int, bar: tqdm
) -> list[Row]:
    """Measures every implementation, a row each. A step decodes one token of every row of the batch.

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
    config = model_config(cli.load_config(options.config))
    if not isinstance(config, LlamaConfig):
        raise UserError(f"{options.config} describes no model of the LLaMA family")
    count, rows = options.output_tokens, []
    workloads = [Workload(0, options.prompt - 1, count, batch, 1, False) for batch in options.batch]
    for workload in workloads:
        workload.check(config)
    params = jax.jit(lambda key: unstacked(registry.init(config, key)))(jax.random.key(0))
    runs = {OURS: ours(params, config, count), **theirs(params, config, options.compile)}
    with tqdm(total=len(workloads) * options.rounds, unit="round") as bar:
        for workload in workloads:
            shape, rng = (workload.batch, options.prompt), np.random.default_rng(0)
            tokens = rng.integers(config.vocab_size, size=shape, dtype=np.int32)
            step_bytes = costs(config, workload, "none", "float32").next_token.bytes
            rows += measure(runs, tokens, count, options.rounds, step_bytes, bar)
    modules = ", ".join(
        f"{module.__name__} {module.__version__}" for module in (jax, torch, transformers)
    )
    print(
        f"{modules}; {torch.get_num_threads()} threads of PyTorch sum {read_bandwidth() / 1e9:.1f} GB/s"
    )
    return rows


def as_text(rows: list[Row]) -> str:
    """Formats a line for each row."""
    lines = [["", "batch", "tokens/s", "ms/step", "GB/s", "ours/it", "95 %", "equal tokens"]]
    for row in rows:
        name, batch, speed, time_of_step, bandwidth, ratio, low, high, equal = row.values()
        speeds = [f"{speed:.0f}", f"{time_of_step:.2f}", f"{bandwidth:.1f}"]
        lines.append(
            [name, str(batch), *speeds, f"{ratio:.2f}", f"{low:.2f} to {high:.2f}", f"{equal:.1%}"]
        )
    return format_table(lines, left=1)


def main() -> None:
    """Runs the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--config", default="configs/llama_30m.py", help="its model is measured")
    arguments.add_argument(
        "--batch", type=cli.positive_ints, default="1,8", help="sizes, with commas between"
    )
    arguments.add_argument("--prompt", type=int, default=140, help="tokens")
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
        rows = compare(options)
        print(as_text(rows))
        if options.output:
            write_csv(options.output, rows)


if __name__ == "__main__":
    main()
