"""The least that a program must read from memory and write to it."""

import math

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from gist_jax.benchmark.matmul import live

_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")


def least_traffic(traced: ClosedJaxpr) -> int:
    """Bytes of all arguments a program uses, read once, and of all it returns, written once.

    Of a table every row that it looks up is read. What it passes on it need not touch.

    Args:
      traced: `jax.jit(function).trace(…).jaxpr`.
    """
    jaxpr = traced.jaxpr
    given = set(jaxpr.invars)
    written = {v for v in jaxpr.outvars if isinstance(v, Var) and v not in given}
    return sum(_read(jaxpr)) + sum(map(_bytes, written))


def _read(jaxpr: Jaxpr) -> list[int]:
    """Bytes read of each argument."""
    read = dict.fromkeys(jaxpr.invars, 0)
    for equation in live(jaxpr):
        sizes = [_bytes(v) for v in equation.invars]
        if equation.primitive.name in _CALLS:
            (inner,) = (v for v in equation.params.values() if isinstance(v, ClosedJaxpr))
            sizes = _read(inner.jaxpr)
        elif equation.primitive.name == "gather":
            sizes[0] = _bytes(equation.outvars[0])
        for v, size in zip(equation.invars, sizes, strict=True):
            if isinstance(v, Var) and v in read:
                # A program that reads an argument again finds it in faster memory.
                read[v] = max(read[v], size)
    return list(read.values())


def _bytes(v: Var | Literal) -> int:
    return math.prod(v.aval.shape) * v.aval.dtype.itemsize
