"""FLOPs of matrix products, counted on what JAX has traced, before XLA.

XLA's own count takes the body of a scan once.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var


def matmul_flops(function: Callable, *args, **kwargs) -> int:
    """FLOPs of all matrix products of a function: 2·m·n·k for `[m, k] @ [k, n]`.

    What a gradient computes anew, because of rematerialization, counts too; what no result depends on
    does not. Of several branches the one
    with the most counts, of a shard_map what one device does. Kernels such as cuDNN's attention do not.

    Args:
      function: that can be jitted.
      args, kwargs: its arguments, arrays or ShapeDtypeStructs.

    Raises:
      ValueError: if there are products in a while loop, since nobody knows how often it turns.
    """
    return products_in(jax.make_jaxpr(function)(*args, **kwargs))


def products_in(traced: ClosedJaxpr) -> int:
    """The same of a function that was traced: `jax.jit(function).trace(…).jaxpr`."""
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
        shape = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    counts = [_of_jaxpr(inner) for value in parameters.values() for inner in _jaxprs(value)]
    if name == "while" and any(counts):
        raise ValueError("there are matrix products in a while loop: how many is not known")
    if name == "cond":
        return max(counts)
    return sum(counts) * (parameters["length"] if name == "scan" else 1)


def _jaxprs(value: Any) -> Iterator[Jaxpr]:
    """Those in the value of an equation's parameter."""
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _jaxprs(one)
