"""FLOPs and bytes of all that a mode does, for any depth and any lengths.

A program grows by the same operations with every layer, so those of shallow models tell those of deep
ones. Its counts are polynomials of the second degree in the lengths, so those of a few lengths tell
those of all. No count is reported that does not agree with the one by hand.
"""

import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax

from gist_jax.benchmark.analytic import Shape, analytic_flops
from gist_jax.benchmark.counting import Cost, count_program, parameters
from gist_jax.benchmark.workload import Workload
from gist_jax.errors import UserError
from gist_jax.models.config import ModelConfig

BILLION = 10**9
# Lengths of programs that are counted: so many tokens that are read and cached, and once and twice STEP
# more. They differ by so much because XLA counts in float32.
TOKENS, CACHED, STEP = 8, 2, 256
LAYERS = "num_layers", "num_decoder_layers"  # fields of configurations


class Costs(NamedTuple):
    """What a mode costs at a workload, by the names of PROGRAMS."""

    forward: Cost
    first_token: Cost
    next_token: Cost
    make_cache: Cost | None  # of all rows' caches; None where there are none
    cache_bytes: int  # of one prompt


def costs(
    config: ModelConfig, workload: Workload, mode: str, dtype: str, interpolate: bool = False
) -> Costs:
    """Counts all programs of a mode.

    Args:
      dtype: of weights and caches, on which their bytes depend.
      interpolate: between the lengths of a few programs, so that many workloads take no longer than one.

    Raises:
      ValueError: if FLOPs of matmuls disagree.
      UserError: if XLA's total is, from a billion parameters up, more than 1 % above them. Attention to
        many thousands of tokens has so many element-wise operations.
    """
    counted_at = _at_lengths if interpolate else _at_depth

    def cost(program: str, shape: Shape) -> Cost:
        found = counted_at(config, program, shape, dtype)
        _check(config, program, shape, found)
        return found

    cached = workload.cached(mode)
    caches = workload.caches if cached else 0
    shape = Shape(workload.batch, workload.new_tokens(mode), cached, caches, mode, workload.output)
    # A forward pass does not depend on the output.
    forward = cost("forward", shape._replace(output=1))
    first, following = cost("first_token", shape), cost("next_token", shape)
    if not cached:
        return Costs(forward, first, following, None, 0)
    whole = workload.instruction + workload.gist_tokens
    kept = cached if mode == "gist_cache" else 0  # of a prompt it is all, which is no further length
    made = cost("make_cache", Shape(caches, whole, kept, 0, mode, 0))
    return Costs(forward, first, following, made, made.results // caches)


def _check(config: ModelConfig, program: str, shape: Shape, found: Cost) -> None:
    by_hand = analytic_flops(config, program, shape)
    if found.matmul_flops != by_hand:
        raise ValueError(
            f"{program} has {found.matmul_flops} FLOPs of matmuls, but {by_hand} by hand: {shape}"
        )
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(parameters(config, "float32")))
    if not by_hand <= found.flops <= (1.01 if size >= BILLION else math.inf) * by_hand:
        raise UserError(
            f"of {program} XLA counts {found.flops} FLOPs, more than 1 % off the {by_hand} of its "
            f"matmuls, so they are not reported: {shape}"
        )


def _at_lengths(config: ModelConfig, program: str, shape: Shape, dtype: str) -> Cost:
    """Evaluates the polynomial through the counts of six programs, or three, by forward differences."""
    # The gist tokens that a cache is made of are among the tokens that are read.
    separate = shape.cached > 0 and program != "make_cache"
    least = TOKENS if separate else max(TOKENS, shape.cached)

    def at(t: int, p: int) -> Cost:
        cached = CACHED + p * STEP if separate else shape.cached
        known = shape._replace(tokens=least + t * STEP, cached=cached)
        return _at_depth(config, program, known, dtype)

    origin, t = at(0, 0), Fraction(shape.tokens - least, STEP)
    one = at(1, 0).minus(origin)
    two = at(2, 0).minus(at(1, 0)).minus(one)
    terms: list[tuple[Cost, int | Fraction]] = [(origin, 1), (one, t), (two, t * (t - 1) / 2)]
    if separate:
        p = Fraction(shape.cached - CACHED, STEP)
        first = at(0, 1).minus(origin)
        second = at(0, 2).minus(at(0, 1)).minus(first)
        both = at(1, 1).minus(at(1, 0)).minus(first)
        terms += [(first, p), (second, p * (p - 1) / 2), (both, t * p)]
    sums = [sum(cost[i] * times for cost, times in terms) for i in range(len(Cost._fields))]
    return Cost(*map(round, sums))


@functools.cache
def _at_depth(config: ModelConfig, program: str, shape: Shape, dtype: str) -> Cost:
    """Extends the costs of two and three layers of each kind to all of them.

    A single layer would not do: of the last one a cache needs only a part.
    """
    depths = {name: getattr(config, name) for name in LAYERS if hasattr(config, name)}
    two: dict[str, Any] = {name: min(depth, 2) for name, depth in depths.items()}
    shallow = dataclasses.replace(config, **two)
    total = least = count_program(shallow, program, shape, dtype)
    for name, depth in depths.items():
        if depth > 2:
            three: dict[str, Any] = {name: 3}
            deeper = count_program(dataclasses.replace(shallow, **three), program, shape, dtype)
            total = total.plus(deeper.minus(least), depth - 2)
    return total
