"""Rows of the benchmark's table: one for each point and mode, with the columns of every output."""

import math

from gist_jax.benchmark.columns import Row
from gist_jax.benchmark.costs import Costs
from gist_jax.benchmark.programs import Point


def counted(point: Point, mode: str, costs: dict[str, Costs]) -> Row:
    """What needs no run: FLOPs, bytes and sizes.

    Args:
      costs: by mode.
    """
    cost, without = costs[mode], costs["none"].first_token.flops
    prompt = costs["prompt_cache"].first_token.flops
    made, cached = cost.make_cache, cost.first_token.flops
    return dict(
        instruction=point.instruction,
        input=point.input,
        output=point.output,
        batch=point.batch,
        gist_tokens=point.gist_tokens,
        caches=point.caches if made else 0,
        mode=mode,
        flops=cost.forward.flops,
        bytes_accessed=cost.forward.bytes,
        cache_bytes=cost.cache_bytes,
        first_flops=cost.first_token.flops,
        token_flops=cost.next_token.flops,
        total_flops=cost.first_token.plus(cost.next_token, point.output - 1).flops,
        build_flops=made.flops if made else None,
        elementwise_share=1 - cost.first_token.products / cost.first_token.flops,
        first_bytes=cost.first_token.bytes,
        token_bytes=cost.next_token.bytes,
        first_saved_flops=1 - cached / without if made else None,
        first_saved_flops_vs_prompt_cache=1 - cached / prompt if mode == "gist_cache" else None,
        reuses=reuses(made.flops, without, cached) if made else None,
    )


def reuses(build: float, without: float, cached: float) -> int | None:
    """How many batches must use caches until making them has paid off; None if they never have."""
    return math.ceil(build / (without - cached)) if cached < without else None
