"""The device mesh, and where on it every array lies."""

import jax
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from gist_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter -> axis of the mesh. Every axis must stand here.
RULES = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "buckets": None,
    "norm": None,
}


def make_mesh(config: ConfigDict) -> Mesh:
    """A mesh of all devices, from the sizes in `config.mesh`.

    Raises:
      ValueError: if the sizes do not make up the number of devices.
    """
    sizes = [config.mesh[axis] for axis in MESH_AXES]
    count = jax.device_count()
    known = 1
    for size in sizes:
        known *= size if size > 0 else 1
    if sizes.count(-1) == 1 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
        known = count
    if known != count or min(sizes) < 1:
        wanted = ", ".join(f"{axis} {config.mesh[axis]}" for axis in MESH_AXES)
        raise UserError(f"config.mesh ({wanted}) does not fit the {count} devices there are")
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, batch_size: int, accumulate: int = 1) -> NamedSharding:
    """Rows split over the data and fsdp axes.

    Raises:
      ValueError: if the rows of a microbatch do not divide evenly.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if (batch_size // accumulate) % ways:
        raise UserError(
            f"a batch of {batch_size} rows in {accumulate} microbatch(es) does not divide over the "
            f"{ways} devices of the mesh's data and fsdp axes"
        )
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def param_shardings(mesh: Mesh, logical_axes, shapes):
    """A NamedSharding for every parameter.

    Args:
      logical_axes: nested dict of tuples of axis names (see `family.logical_axes`).
      shapes: the same tree of arrays or ShapeDtypeStructs.

    Raises:
      ValueError: if an axis has no rule, or a dimension does not divide over the mesh.
    """

    def sharding(path, leaf, axes):
        name = "/".join(str(key.key) for key in path)
        unknown = [axis for axis in axes if axis not in RULES]
        if unknown:
            raise UserError(f"parameter {name} has axis {unknown[0]!r}, for which there is no rule")
        spec = [RULES[axis] for axis in axes]
        for i, (size, axis) in enumerate(zip(leaf.shape, spec, strict=True)):
            if axis is None or size % mesh.shape[axis] == 0:
                continue
            if axes[i] == "vocab":  # the gist token makes 32000 entries 32001: keep them together
                spec[i] = None
            else:
                raise UserError(
                    f"parameter {name} of shape {leaf.shape} does not divide over the mesh's "
                    f"{mesh.shape[axis]} devices along {axis}"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    # The tuples of axes are leaves: the tree of shapes decides the structure.
    return jax.tree_util.tree_map_with_path(sharding, shapes, logical_axes)


def optimizer_shardings(mesh: Mesh, optimizer: optax.GradientTransformation, shapes, shardings):
    """Moments lie where their parameters lie; counters on every device."""
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, shapes),
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
