"""Cost of reading a prompt: with the whole instruction, and with its gist cache in its place."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from gist_jax.inference.buckets import padded_rows
from gist_jax.inference.generate import prefill
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.language_model import LanguageModel
from gist_jax.models.family import merge


class Cost(NamedTuple):
    """Of one prefill of a batch, up to the scores of the first output token."""

    flops: float  # counted by XLA
    seconds: float  # median
    tokens: int  # read per row


def prefill_costs(
    model: LanguageModel, instruction: str, inputs: Sequence[str], repeats: int = 50
) -> tuple[Cost, Cost]:
    """Costs without and with a gist cache for one instruction and a batch of inputs.

    The layers are not scanned, so XLA counts each. The two are timed in turns, compiled and warm,
    with the inputs' own tokens; rows are padded to the longest, to no bucket.
    """
    rows = [model.prompts.input_ids(text) for text in inputs]
    head = model.prompts.instruction_ids(instruction)
    gists = model.compress([instruction])
    programs = [
        (length, *_compiled(model, whole, prefix))
        for whole, prefix in (([head + row for row in rows], None), (rows, gists))
        for length in [max(map(len, whole))]
    ]
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(repeats):
        for (_, _, run), times in zip(programs, seconds, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    without, with_cache = (
        Cost(flops, statistics.median(times), length)
        for (length, flops, _), times in zip(programs, seconds, strict=True)
    )
    return without, with_cache


def _compiled(
    model: LanguageModel, rows: list[list[int]], prefix: GistCache | None
) -> tuple[float, Callable[[], None]]:
    """FLOPs of the compiled prefill of these rows, and a function that runs it once."""
    tokens, segment = padded_rows(rows, model.tokenizer.pad_id, to_buckets=False)

    @functools.partial(jax.jit, static_argnames="config")
    def first_scores(params, tokens, segment, prefix, config):
        merged = merge(params, config)
        prompt = prefill(
            merged,
            tokens,
            segment,
            prefix,
            condition=model.condition,
            gist_token=model.tokenizer.gist_id,
            max_new=1,
        )
        return merged.logits(prompt.begun.hidden), prompt.begun.cache, prompt.context

    arguments = jax.device_put((model.params, tokens, segment, prefix))
    program = first_scores.lower(*arguments, model.config).compile()

    def run() -> None:
        jax.block_until_ready(program(*arguments))

    run()
    return program.cost_analysis()["flops"], run
