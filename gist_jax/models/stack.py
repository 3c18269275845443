"""Layers stacked and scanned for training, or unrolled for inference.

In training the layers are one dict of arrays `[L, …]`: one layer is compiled, and memory is bounded by
rematerialization. For inference `unstacked` makes them a dict per layer, so that every layer updates a
cache of its own in place.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from flax.traverse_util import flatten_dict

from gist_jax.models.attention import ATTENDED
from gist_jax.models.dropout import Dropout

Params = dict[str, Any]
TRANSPOSED = "transposed"  # name of a kernel whose dimensions are in reverse order
Layer = TypeVar("Layer", bound=nnx.Module)

# What the backward pass keeps of each scanned layer.
REMAT_POLICIES = {
    "none": None,  # keep everything
    # Keep matmuls with parameters, and attention that was made in blocks.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(ATTENDED),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only the input of each layer
}


def make_layers(
    make: Callable[[nnx.Rngs], nnx.Module], count: int, stacked: bool, rngs: nnx.Rngs
) -> Any:
    """`count` layers, as one module of stacked parameters or as a list of modules."""
    if stacked:
        return nnx.split_rngs(splits=count)(nnx.vmap(make))(rngs)
    return nnx.List(make(rngs) for _ in range(count))


def scan_layers(
    layers: Layer,
    apply: Callable[[Layer, jax.Array, Dropout | None], jax.Array],
    x: jax.Array,
    *,
    remat: str,
    dropout: Dropout | None = None,
) -> jax.Array:
    """Runs `x` through stacked layers.

    Args:
      apply: `(layer, x, dropout) -> x`.
      remat: name in REMAT_POLICIES.
    """
    structure, stacked = nnx.split(layers)

    def body(x: jax.Array, layer: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
        parameters, keys = layer
        dropped = None if dropout is None or keys is None else Dropout(dropout.rate, keys)
        return apply(nnx.merge(structure, parameters), x, dropped), None

    policy = REMAT_POLICIES[remat]
    if policy is not None:
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    keys = None if dropout is None else dropout.layer_keys(jax.tree.leaves(stacked)[0].shape[0])
    return jax.lax.scan(body, x, (stacked, keys))[0]


def is_stacked(params: Params) -> bool:
    """Whether the parameters are as training has them, and not as `unstacked` leaves them."""
    return not any(
        isinstance(value, dict) and (0 in value if name == "layers" else not is_stacked(value))
        for name, value in params.items()
    )


def unstacked(params: Params) -> Params:
    """The same parameters with one dict per layer, `{"layers": {0: …, 1: …}}`, for inference."""
    return {
        name: _split_layers(value)
        if name == "layers"
        else unstacked(value)
        if isinstance(value, dict)
        else value
        for name, value in params.items()
    }


def is_transposed(params: Params) -> bool:
    """Whether kernels have their dimensions in reverse order, see `Projection.transpose`."""
    return any(path[-1] == TRANSPOSED for path in flatten_dict(params))


def _split_layers(layers: Params) -> dict[int, Params]:
    count = jax.tree.leaves(layers)[0].shape[0]
    return {i: jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count)}
