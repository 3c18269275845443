"""Times, bytes and memory of the three modes, on the same random inputs, side by side."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from gist_jax.benchmark.costs import costs
from gist_jax.benchmark.equivalence import agreement, logits_after
from gist_jax.benchmark.latency import device_seconds, interleaved, saving
from gist_jax.benchmark.rows import Row, cost_row, reuses
from gist_jax.benchmark.workload import MODES, Workload, make_cache
from gist_jax.cost_model.hlo import bytes_accessed
from gist_jax.inference.decode import first_token, generate, next_token
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params
from gist_jax.sharding import in_mesh


class BenchmarkModel(NamedTuple):
    """A model to measure."""

    config: ModelConfig
    params: Params  # on the device, with unrolled layers
    gist_token: int
    mesh: Mesh | None = None  # of the devices that share the parameters

    @property
    def dtype(self) -> str:
        """The dtype of the parameters and the computation."""
        return self.params["embedding"].dtype.name


class _Mode(NamedTuple):
    """Compiled programs of a mode, and functions that run them."""

    first_token: Callable[[], jax.Array]
    generate: Callable[[], jax.Array]
    make_cache: Callable[[], Any] | None
    compile_seconds: float
    token_bytes: float  # accessed by a decode step
    peak_bytes: int
    room: int  # bytes of the device's memory that are left for caches


def measure(
    model: BenchmarkModel, workload: Workload, rounds: int, tick: Callable[[], object]
) -> list[Row]:
    """Measures every mode at a workload.

    Args:
      rounds: how often each program is timed.
      tick: called after every round.

    Returns:
      A row for each mode. If the device has not enough memory, they have only what can be counted.

    Raises:
      ValueError: if, in float32 on CPUs, a mode gives other tokens than the full prompt.
    """
    counted = {mode: costs(model.config, workload, mode, model.dtype) for mode in MODES}
    rows = {mode: cost_row(workload, mode, counted) for mode in MODES}
    try:
        with in_mesh(model.mesh):
            measured = _measured(model, workload, rounds, tick)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        logging.warning("%s does not fit into the device's memory", workload)
        return list(rows.values())
    for mode, (row, room) in measured.items():
        cache_bytes = counted[mode].cache_bytes
        rows[mode] |= row | dict(prompts=room // cache_bytes if cache_bytes else None)
    return list(rows.values())


def _measured(
    model: BenchmarkModel, workload: Workload, rounds: int, tick: Callable[[], object]
) -> dict[str, tuple[Row, int]]:
    """By mode: the columns that are measured, and the bytes that are left for caches."""
    tokens = _random_tokens(model, workload)
    modes = {mode: _prepared(model, workload, mode, tokens) for mode in MODES}
    output = {mode: np.asarray(ready.generate()) for mode, ready in modes.items()}

    def logits(number: int) -> np.ndarray:
        before = jnp.asarray(output["none"][:, :number])
        settings: dict[str, Any] = dict(config=model.config, gist_token=model.gist_token)
        return np.asarray(logits_after(model.params, tokens, np.ones_like(tokens), before, **settings))

    # Accelerators round the factors of float32 matmuls.
    exact = model.dtype == "float32" and jax.default_backend() == "cpu"
    agreed = {m: agreement(output["none"], o, logits if exact else None) for m, o in output.items()}

    runs = {
        (m, n): getattr(modes[m], n) for m in MODES for n in ("first_token", "generate", "make_cache")
    }
    seconds = interleaved({key: run for key, run in runs.items() if run is not None}, rounds, tick)
    rows = {}
    for mode, ready in modes.items():
        row = _times(workload, mode, seconds) | dict(
            first_device_seconds=device_seconds(ready.first_token),
            total_device_seconds=device_seconds(ready.generate),
            token_bytes_compiled=ready.token_bytes,
            compile_seconds=ready.compile_seconds,
            peak_bytes=ready.peak_bytes,
            agreement=agreed[mode],
        )
        rows[mode] = row, ready.room
    return rows


def _times(workload: Workload, mode: str, seconds: dict[tuple[str, str], np.ndarray]) -> Row:
    """The columns of times: medians, quartiles and savings.

    The time of a token after the first is the median of differences.
    """
    row: Row = {}
    first, total = (seconds[mode, name] for name in ("first_token", "generate"))
    for name, of_mode in (("first", first), ("total", total)):
        low, median, high = np.percentile(of_mode, [25, 50, 75])
        row |= {f"{name}_seconds": median, f"{name}_seconds_low": low, f"{name}_seconds_high": high}
    following = float(np.median(total - first)) / max(1, workload.output - 1)
    row["token_seconds"] = following if workload.output > 1 else None
    row["tokens_per_second"] = workload.batch * workload.output / row["total_seconds"]
    for name, program in (("first", "first_token"), ("total", "generate")):
        for base, suffix in (("none", ""), ("prompt_cache", "_vs_prompt_cache")):
            compared = base != mode and mode != "none"
            values = saving(seconds[base, program], seconds[mode, program]) if compared else [None] * 3
            for value, limit in zip(values, ("", "_low", "_high"), strict=True):
                row[f"{name}_saved{suffix}{limit}"] = value
    row["build_seconds"] = row["reuses"] = None
    if mode != "none":
        row["build_seconds"] = build = float(np.median(seconds[mode, "make_cache"]))
        row["reuses"] = reuses(
            build, float(np.median(seconds["none", "first_token"])), row["first_seconds"]
        )
    return row


def _random_tokens(model: BenchmarkModel, workload: Workload) -> np.ndarray:
    """Makes whole prompts, int32 `[B, T]`, in which only the gist tokens stand for themselves."""
    shape = workload.batch, workload.new_tokens("none")
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size - 1, shape, np.int32)
    tokens += tokens >= model.gist_token
    if workload.one_instruction:
        tokens[:, : workload.instruction] = tokens[:1, : workload.instruction]
    tokens[:, workload.instruction : workload.instruction + workload.gist_tokens] = model.gist_token
    return tokens


def _prepared(model: BenchmarkModel, workload: Workload, mode: str, tokens: np.ndarray) -> _Mode:
    config, params = model.config, model.params
    mask: dict[str, Any] = dict(config=config, gist_token=model.gist_token)
    compiling = 0.0

    def compiled(function: Any, *arguments: Any, **settings: Any) -> jax.stages.Compiled:
        nonlocal compiling
        start = time.perf_counter()
        program = function.lower(*arguments, **settings).compile()
        compiling += time.perf_counter() - start
        return program

    run_make_cache = prefix = None
    if mode != "none":
        whole = tokens[: workload.caches, : workload.instruction + workload.gist_tokens]
        arguments = jax.device_put((params, whole, np.ones_like(whole)))
        making = jax.jit(
            functools.partial(make_cache, **mask, mode=mode, num_gists=workload.gist_tokens)
        )
        run_make_cache = functools.partial(compiled(making, *arguments), *arguments)
        prefix = run_make_cache()
    prompt = tokens[:, tokens.shape[1] - workload.new_tokens(mode) :]
    arguments = jax.device_put((params, prompt, np.ones_like(prompt), prefix))
    # Without an end of sequence: one token, or all.
    once, all_of_it = (
        jax.device_put((np.int32(limit), np.int32(-1), np.uint32(0))) for limit in (1, workload.output)
    )
    settings = dict(**mask, condition="gist", max_new=workload.output)
    program = compiled(generate, *arguments, *all_of_it, None, **settings)
    memory = program.memory_analysis()
    assert memory is not None  # every platform has it
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
    kept = 0 if prefix is None else prefix.nbytes
    return _Mode(
        functools.partial(program, *arguments, *once, None),
        functools.partial(program, *arguments, *all_of_it, None),
        run_make_cache,
        compiling,
        bytes_accessed(_step(model, workload, arguments)),
        peak,
        max(0, _device_memory() - (peak - kept)),
    )


def _step(model: BenchmarkModel, workload: Workload, arguments: tuple) -> jax.stages.Compiled:
    """Compiles the decode step that follows the first token."""
    mask: dict[str, Any] = dict(config=model.config, gist_token=model.gist_token, condition="gist")
    beginning = functools.partial(first_token, **mask, max_new=workload.output)
    state_and_token = jax.eval_shape(beginning, *arguments)
    step = jax.jit(functools.partial(next_token, config=model.config), donate_argnums=2)
    return step.lower(model.params, *state_and_token).compile()


def _device_memory() -> int:
    """Bytes that a program can have on the first device; of a CPU, all there are."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
