"""The device mesh, and where on it every array lies."""

from collections.abc import Sequence

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from gist_jax.errors import UserError
from gist_jax.models.axes import RULES, spec, ways

MESH_AXES = ("data", "fsdp", "tensor")
# These stay whole where they do not divide: the gist token makes 32000 entries 32001, and there may be
# fewer key/value heads than devices.
MAY_STAY_WHOLE = ("vocab", "kv_heads")


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh from the sizes in `config.mesh`.

    Args:
      devices: all there are by default.

    Raises:
      ValueError: if the sizes do not make up the number of devices.
    """
    sizes = [config.mesh[axis] for axis in MESH_AXES]
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    known = 1
    for size in sizes:
        known *= size if size > 0 else 1
    if sizes.count(-1) == 1 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
        known = count
    if known != count or min(sizes) < 1:
        wanted = ", ".join(f"{axis} {config.mesh[axis]}" for axis in MESH_AXES)
        raise UserError(f"config.mesh ({wanted}) does not fit the {count} devices there are")
    # An axis may have to be a part of one of a TPU's torus.
    placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def local_rows(rows_on: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a batch that lie on devices of this process, ascending."""
    parts = rows_on.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def place_rows(
    batch: dict[str, np.ndarray], rows: np.ndarray, rows_on: NamedSharding, batch_size: int
) -> dict[str, jax.Array]:
    """A batch on the mesh, of which every process gives its `local_rows`."""

    def place(x: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            wanted = np.arange(batch_size)[index[0]]
            return x[np.searchsorted(rows, wanted)]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), rows_on, part)

    return {name: place(x) for name, x in batch.items()}


def placed(shapes, shardings):
    """A tree of ShapeDtypeStructs with shardings, from two trees."""
    return jax.tree.map(
        lambda x, on: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), shapes, shardings
    )


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
        for axis, size in zip(axes, leaf.shape, strict=True):
            if axis not in RULES:
                raise UserError(f"parameter {name} has axis {axis!r}, for which there is no rule")
            if axis not in MAY_STAY_WHOLE and size % ways(mesh, axis):
                raise UserError(
                    f"parameter {name} of shape {leaf.shape} does not divide over the mesh's "
                    f"{ways(mesh, axis)} devices along {RULES[axis]}"
                )
        return NamedSharding(mesh, spec(mesh, axes, leaf.shape))

    # The tuples of axes are leaves: the tree of shapes decides the structure.
    return jax.tree_util.tree_map_with_path(sharding, shapes, logical_axes)


def optimizer_shardings(mesh: Mesh, optimizer: optax.GradientTransformation, shapes, shardings):
    """Moments lie where their parameters lie; counters, and Adafactor's sums over a dimension, which are
    small, on every device.
    """
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda state, param, sharding: sharding if state.shape == param.shape else replicated(mesh),
        jax.eval_shape(optimizer.init, shapes),
        shapes,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
