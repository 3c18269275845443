"""FLOPs and bytes of a model of any size, from its shape alone.

XLA counts the FLOPs on programs as they are lowered for an accelerator: with layers unrolled, since of a
loop it counts the body once, and before kernels that it cannot look into, or a CPU's conversions of
bfloat16, take their place. A program grows by the same operations with every layer, so those with one
and two layers of each kind tell those of any depth. No count is reported that does not agree with the
one by hand.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gist_jax.benchmark import programs
from gist_jax.benchmark.analytic import Shape, products
from gist_jax.benchmark.matmul import products_in
from gist_jax.benchmark.programs import Point
from gist_jax.benchmark.traffic import least_traffic
from gist_jax.inference.gist_cache import GistCache
from gist_jax.models import family
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params, unstacked

BILLION = 10**9


class Cost(NamedTuple):
    """Of one execution of a program."""

    flops: float  # counted by XLA
    products: int  # FLOPs of matrix products
    bytes: int  # that must be read and written, see `least_traffic`
    results: int  # bytes of the floating-point arrays it returns

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        """Both, the other one several times."""
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


class Costs(NamedTuple):
    """Of a mode at a point, by the names of gist_jax.benchmark.programs."""

    forward: Cost
    first_token: Cost
    next_token: Cost
    make_cache: Cost | None  # of all rows' caches; None where there are none
    cache_bytes: int  # of one prompt


def costs(config: ModelConfig, point: Point, mode: str, dtype: str) -> Costs:
    """Counts all programs of a mode.

    Args:
      dtype: of weights and caches, on which their bytes depend.

    Raises:
      ValueError: if counts disagree: FLOPs of matrix products at all, or XLA's total, from a billion
        parameters up, by more than 1 %.
    """
    cached = point.cached(mode)
    caches = point.caches if cached else 0
    shape = Shape(point.batch, point.read(mode), cached, caches, mode, point.output)
    once = shape._replace(output=1)  # a forward pass does not depend on the output
    forward = _cost(config, "forward", once, dtype)
    first, following = (_cost(config, name, shape, dtype) for name in ("first_token", "next_token"))
    if not cached:
        return Costs(forward, first, following, None, 0)
    whole = point.instruction + point.gist_tokens
    made = _cost(config, "make_cache", Shape(caches, whole, cached, 0, mode, 0), dtype)
    return Costs(forward, first, following, made, made.results // caches)


def nbytes(tree) -> int:
    """Of arrays or ShapeDtypeStructs."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@functools.lru_cache
def parameters(config: ModelConfig, dtype: str) -> Params:
    """Their shapes, with layers apart."""
    return jax.eval_shape(lambda: unstacked(family.init(config, jax.random.key(0), jnp.dtype(dtype))))


@functools.cache
def _cost(config: ModelConfig, program: str, shape: Shape, dtype: str) -> Cost:
    shallow = dataclasses.replace(config, **dict.fromkeys(_depths(config), 1))
    total = least = _counted(shallow, program, shape, dtype)
    for name in _depths(config):
        deeper = _counted(dataclasses.replace(shallow, **{name: 2}), program, shape, dtype)
        layer = deeper.plus(least, -1)
        total = total.plus(layer, getattr(config, name) - 1)
    by_hand = products(config, program, shape)
    if total.products != by_hand:
        raise ValueError(
            f"{program} has {total.products} FLOPs of matrix products, but {by_hand} by hand: {shape}"
        )
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(parameters(config, dtype)))
    if not by_hand <= total.flops <= (1.01 if size >= BILLION else math.inf) * by_hand:
        raise ValueError(
            f"XLA counts {total.flops:.0f} FLOPs in {program}, but {by_hand} by hand: {shape}"
        )
    return total


def _depths(config: ModelConfig) -> list[str]:
    """Names of the fields that say how many layers there are."""
    return [name for name in ("num_layers", "num_decoder_layers") if hasattr(config, name)]


def _counted(config: ModelConfig, program: str, shape: Shape, dtype: str) -> Cost:
    traced = _traced(config, program, shape, dtype)
    traffic = least_traffic(traced.jaxpr)
    if program == "next_token":  # its own cache grows in place
        cache, _ = traced.out_info
        traffic -= nbytes(cache)
    flops = traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]
    floating = [x for x in jax.tree.leaves(traced.out_info) if jnp.issubdtype(x.dtype, jnp.floating)]
    return Cost(flops, products_in(traced.jaxpr), traffic, nbytes(floating))


@functools.cache
def _traced(config: ModelConfig, program: str, shape: Shape, dtype: str) -> jax.stages.Traced:
    settings = dict(config=config)
    params = parameters(config, dtype)
    if program == "next_token":
        prompt, token = _traced(config, "first_token", shape, dtype).out_info
        arguments = params, *programs.apart(prompt), token, jax.ShapeDtypeStruct((), jnp.int32)
    else:
        settings |= dict(gist_token=config.vocab_size - 1)
        tokens = jax.ShapeDtypeStruct((shape.batch, shape.tokens), jnp.int32)
        arguments = params, tokens, tokens
        if program == "make_cache":
            settings |= dict(mode=shape.mode, num_gists=shape.cached)
        else:
            cached = shape.caches, shape.cached, shape.mode
            arguments = *arguments, _prefix(config, *cached, dtype) if shape.cached else None
    if program == "first_token":
        settings |= dict(max_new=shape.output)
    return jax.jit(functools.partial(getattr(programs, program), **settings)).trace(*arguments)


@functools.cache
def _prefix(config: ModelConfig, caches: int, cached: int, mode: str, dtype: str) -> GistCache:
    """The cache that is there before a program runs; that of gist tokens may be of any instruction."""
    return _traced(config, "make_cache", Shape(caches, cached, cached, 0, mode, 0), dtype).out_info
