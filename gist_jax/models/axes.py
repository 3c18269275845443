"""Names of dimensions, and the axis of the device mesh that each is split over.

Parameters carry the names of their dimensions. Models name those of their activations where XLA must not
choose for itself: after every layer, at the logits, and at a layer's parameters.
"""

from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

# Every name must stand here.
RULES: dict[str, str | tuple[str, ...] | None] = {
    # of parameters
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "buckets": None,
    "norm": None,
    # of activations
    "batch": ("data", "fsdp"),
    "lookup": "data",  # rows, where their columns are split as those of an embedding
    "length": None,
    "hidden": None,
}


def ways(mesh, axis: str) -> int:
    """Over how many devices of a mesh a dimension of that name is split."""
    over = RULES[axis]
    size = 1
    for name in (over,) if isinstance(over, str) else over or ():
        size *= mesh.shape[name]
    return size


def spec(mesh, axes: Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    """How an array is split, dimension by dimension; one that does not divide evenly stays whole."""
    return PartitionSpec(
        *(
            RULES[axis] if size % ways(mesh, axis) == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """`x` split by the names of its dimensions, and its gradient likewise.

    Does nothing outside `jax.set_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, spec(mesh, axes, x.shape))
