"""Times, bytes and memory of the three modes, on the same random inputs, side by side."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gist_jax.benchmark import programs
from gist_jax.benchmark.columns import Row
from gist_jax.benchmark.costs import Costs
from gist_jax.benchmark.counting import nbytes
from gist_jax.benchmark.equivalence import agreement, scores_after
from gist_jax.benchmark.hlo import bytes_accessed
from gist_jax.benchmark.latency import device_seconds, interleaved, saving
from gist_jax.benchmark.programs import MODES, Point
from gist_jax.benchmark.rows import counted, reuses
from gist_jax.inference.generate import generate
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params


class Subject(NamedTuple):
    """A model to measure."""

    config: ModelConfig
    params: Params  # on the device, layers apart
    gist_token: int

    @property
    def dtype(self) -> str:
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
    subject: Subject, point: Point, costs: dict[str, Costs], rounds: int, tick: Callable[[], object]
) -> list[Row]:
    """A row for each mode.

    Args:
      costs: by mode.
      rounds: how often each program is timed.
      tick: called after every round.

    Raises:
      ValueError: if, in float32 on CPUs, a mode writes other tokens than the full prompt.
    """
    tokens = _random_tokens(subject, point)
    modes = {mode: _prepared(subject, point, mode, tokens) for mode in MODES}
    output = {mode: np.asarray(ready.generate()) for mode, ready in modes.items()}

    def scores(number: int) -> np.ndarray:
        written = jnp.asarray(output["none"][:, :number])
        settings = dict(config=subject.config, gist_token=subject.gist_token)
        segment = np.ones_like(tokens)
        return np.asarray(scores_after(subject.params, tokens, segment, written, **settings))

    # Accelerators round the factors of float32 products.
    exact = subject.dtype == "float32" and jax.default_backend() == "cpu"
    agreed = {m: agreement(output["none"], o, scores if exact else None) for m, o in output.items()}

    runs = {
        (m, n): getattr(modes[m], n) for m in MODES for n in ("first_token", "generate", "make_cache")
    }
    seconds = interleaved({key: run for key, run in runs.items() if run is not None}, rounds, tick)
    rows = []
    for mode, ready in modes.items():
        row = counted(point, mode, costs)
        row |= _times(point, mode, seconds) | dict(
            first_device_seconds=device_seconds(ready.first_token),
            total_device_seconds=device_seconds(ready.generate),
            token_bytes_compiled=ready.token_bytes,
            compile_seconds=ready.compile_seconds,
            peak_bytes=ready.peak_bytes,
            prompts=ready.room // costs[mode].cache_bytes if costs[mode].cache_bytes else None,
            agreement=agreed[mode],
        )
        rows.append(row)
    return rows


def _times(point: Point, mode: str, seconds: dict[tuple[str, str], np.ndarray]) -> Row:
    """Medians, quartiles and savings; of a token after the first, the median of differences."""
    row: Row = {}
    first, total = (seconds[mode, name] for name in ("first_token", "generate"))
    for name, of_mode in (("first", first), ("total", total)):
        low, median, high = np.percentile(of_mode, [25, 50, 75])
        row |= {f"{name}_seconds": median, f"{name}_seconds_low": low, f"{name}_seconds_high": high}
    following = float(np.median(total - first)) / max(1, point.output - 1)
    row["token_seconds"] = following if point.output > 1 else None
    row["tokens_per_second"] = point.batch * point.output / row["total_seconds"]
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


def _random_tokens(subject: Subject, point: Point) -> np.ndarray:
    """Whole prompts, int32 `[B, T]`, in which only the gist tokens stand for themselves."""
    shape = point.batch, point.read("none")
    tokens = np.random.default_rng(0).integers(0, subject.config.vocab_size - 1, shape, np.int32)
    tokens += tokens >= subject.gist_token
    if point.one_instruction:
        tokens[:, : point.instruction] = tokens[:1, : point.instruction]
    tokens[:, point.instruction : point.instruction + point.gist_tokens] = subject.gist_token
    return tokens


def _prepared(subject: Subject, point: Point, mode: str, tokens: np.ndarray) -> _Mode:
    config, params = subject.config, subject.params
    mask = dict(config=config, gist_token=subject.gist_token)
    compiling = 0.0

    def compiled(function, *arguments, **settings):
        nonlocal compiling
        start = time.perf_counter()
        program = function.lower(*arguments, **settings).compile()
        compiling += time.perf_counter() - start
        return program

    make_cache = prefix = None
    if mode != "none":
        whole = tokens[: point.caches, : point.instruction + point.gist_tokens]
        arguments = jax.device_put((params, whole, np.ones_like(whole)))
        making = jax.jit(
            functools.partial(programs.make_cache, **mask, mode=mode, num_gists=point.gist_tokens)
        )
        make_cache = functools.partial(compiled(making, *arguments), *arguments)
        prefix = make_cache()
    read = tokens[:, tokens.shape[1] - point.read(mode) :]
    arguments = jax.device_put((params, read, np.ones_like(read), prefix))
    # Without an end of sequence: one token, or all.
    once, all_of_it = (
        jax.device_put((np.int32(limit), np.int32(-1), np.uint32(0))) for limit in (1, point.output)
    )
    settings = dict(**mask, condition="gist", max_new=point.output)
    program = compiled(generate, *arguments, *all_of_it, None, **settings)
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
    kept = 0 if prefix is None else nbytes(prefix.memory)
    return _Mode(
        functools.partial(program, *arguments, *once, None),
        functools.partial(program, *arguments, *all_of_it, None),
        make_cache,
        compiling,
        bytes_accessed(_step(subject, point, arguments)),
        peak,
        max(0, _device_memory() - (peak - kept)),
    )


def _step(subject: Subject, point: Point, arguments: tuple) -> jax.stages.Compiled:
    """The decode step that follows the first token."""
    mask = dict(config=subject.config, gist_token=subject.gist_token, condition="gist")
    beginning = functools.partial(programs.first_token, **mask, max_new=point.output)
    prompt, token = jax.eval_shape(beginning, *arguments)
    step = jax.jit(functools.partial(programs.next_token, config=subject.config), donate_argnums=2)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return step.lower(subject.params, *programs.apart(prompt), token, number).compile()


def _device_memory() -> int:
    """Bytes that a program can have on the first device; of a CPU, all there are."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
