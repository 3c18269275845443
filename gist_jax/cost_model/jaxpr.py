"""FLOPs of matmuls, and the least memory traffic, counted on what JAX has traced, before XLA.

XLA's own count takes the body of a scan once.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

# Primitives that run a jaxpr once.
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
# Matmuls of queries and keys in cuDNN's kernels, whose backward pass makes the logits again.
_FUSED_ATTENTION = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def matmul_flops(function: Callable, *args: Any, **kwargs: Any) -> int:
    """FLOPs of all matmuls of a function: 2·m·n·k for `[m, k] @ [k, n]`.

    What a gradient computes anew, because of rematerialization, counts too; what no result depends on
    does not. Of several branches the one with the most FLOPs counts, of a shard_map what one device
    does. What happens inside a kernel is not seen, but for cuDNN's attention.

    Args:
      function: that can be jitted.
      args, kwargs: its arguments, arrays or ShapeDtypeStructs.

    Raises:
      ValueError: if there are matmuls in a while loop, whose trip count nobody knows.
    """
    return matmul_flops_of_jaxpr(jax.make_jaxpr(function)(*args, **kwargs))


def matmul_flops_of_jaxpr(traced: ClosedJaxpr) -> int:
    """FLOPs of all matmuls of a traced function, `jax.jit(function).trace(…).jaxpr`."""
    return _of_jaxpr(traced.jaxpr)


def live(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations that results depend on; JAX does not hand others to XLA."""
    needed, equations = _variables(jaxpr.outvars), []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            equations.append(equation)
            needed |= _variables(equation.invars)
    return equations[::-1]


def _variables(values: Iterable[Any]) -> set[Var]:
    return {v for v in values if isinstance(v, Var)}


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(map(_of_equation, live(jaxpr)))


def _of_equation(equation: JaxprEqn) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = _array(equation.invars[0]).shape
        return 2 * math.prod(_array(equation.outvars[0]).shape) * math.prod(shape[i] for i in contracted)
    if name in _FUSED_ATTENTION:
        batch, length, heads, head_dim = _array(equation.invars[0]).shape
        one = 2 * batch * length * _array(equation.invars[1]).shape[1] * heads * head_dim
        return _FUSED_ATTENTION[name] * one
    counts = [_of_jaxpr(inner) for value in parameters.values() for inner in subjaxprs(value)]
    if name == "while" and any(counts):
        raise ValueError("there are matmuls in a while loop: how many is not known")
    if name == "cond":
        return max(counts)
    return sum(counts) * (parameters["length"] if name == "scan" else 1)


def subjaxprs(value: Any) -> Iterator[Jaxpr]:
    """The jaxprs in the value of an equation's parameter."""
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from subjaxprs(one)


def least_traffic(traced: ClosedJaxpr) -> int:
    """Bytes that a program must move: the arguments it uses, and what it returns, each once.

    Of a table only the rows that it looks up are read. What it passes on it need not touch.

    Args:
      traced: `jax.jit(function).trace(…).jaxpr`.
    """
    jaxpr = traced.jaxpr
    given = set(jaxpr.invars)
    written = {v for v in jaxpr.outvars if isinstance(v, Var) and v not in given}
    return sum(_read(jaxpr)) + sum(map(_bytes, written))


def _read(jaxpr: Jaxpr) -> list[int]:
    """Bytes read of each argument of a jaxpr."""
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
    return math.prod(_array(v).shape) * _array(v).dtype.itemsize


def _array(v: Var | Literal) -> jax.core.ShapedArray:
    """Shape and dtype of a value; those that are no arrays are not counted."""
    return cast(jax.core.ShapedArray, v.aval)
