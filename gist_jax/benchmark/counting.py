"""FLOPs and bytes of one program, from shapes alone."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gist_jax.benchmark.analytic import Shape
from gist_jax.benchmark.workload import PROGRAMS
from gist_jax.cost_model.jaxpr import least_traffic, matmul_flops_of_jaxpr
from gist_jax.inference.gist_cache import GistCache
from gist_jax.models import registry
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params, unstacked


class Cost(NamedTuple):
    """FLOPs and bytes of one execution of a program."""

    flops: int  # counted by XLA
    matmul_flops: int
    bytes: int  # that must be read and written, see `least_traffic`
    results: int  # bytes of the floating-point arrays it returns

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        """The cost of this program and, several times, another."""
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Cost") -> "Cost":
        """The cost of this program without another."""
        return self.plus(other, -1)


def nbytes(tree: Any) -> int:
    """Bytes of all arrays or ShapeDtypeStructs of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@functools.lru_cache
def parameters(config: ModelConfig, dtype: str) -> Params:
    """The parameters of a model as ShapeDtypeStructs, with unrolled layers."""
    return jax.eval_shape(lambda: unstacked(registry.init(config, jax.random.key(0), jnp.dtype(dtype))))


def count_program(config: ModelConfig, program: str, shape: Shape, dtype: str) -> Cost:
    """Counts one of PROGRAMS, from shapes alone.

    XLA counts the FLOPs on programs as they are lowered for an accelerator: with unrolled layers, since
    of a loop it counts the body once, and before kernels that it cannot look into, or a CPU's
    conversions of bfloat16, take their place.

    Args:
      dtype: of weights and caches.
    """
    traced = _traced(config, program, shape, dtype)
    traffic = least_traffic(traced.jaxpr)
    if program == "next_token":  # its own cache grows in place
        state, _ = traced.out_info
        traffic -= nbytes(state.cache)
    flops = traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]
    floating = [x for x in jax.tree.leaves(traced.out_info) if jnp.issubdtype(x.dtype, jnp.floating)]
    return Cost(int(flops), matmul_flops_of_jaxpr(traced.jaxpr), traffic, nbytes(floating))


@functools.lru_cache(maxsize=16)
def _traced(config: ModelConfig, program: str, shape: Shape, dtype: str) -> jax.stages.Traced:
    settings: dict[str, Any] = dict(config=config)
    params = parameters(config, dtype)
    arguments: tuple[Any, ...]
    if program == "next_token":
        arguments = params, *_traced(config, "first_token", shape, dtype).out_info
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
        settings |= dict(condition="gist", max_new=shape.output)
    return jax.jit(functools.partial(PROGRAMS[program], **settings)).trace(*arguments)


@functools.cache
def _prefix(config: ModelConfig, caches: int, cached: int, mode: str, dtype: str) -> GistCache:
    """The cache that is there before a program runs; that of gist tokens may be of any instruction."""
    return _traced(config, "make_cache", Shape(caches, cached, cached, 0, mode, 0), dtype).out_info
