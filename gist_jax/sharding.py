"""Where arrays lie on the devices: from names of dimensions to axes of the device mesh.

Every dimension of a parameter, and of the activations between layers, has a *logical axis*: a name such
as "heads" or "batch" that says what the dimension is, not where it goes. RULES is the one table that
maps logical axes to axes of the mesh: `data` splits rows, `fsdp` splits rows and parameters (with their
moments), `tensor` splits heads, feed-forward and vocabulary. Models only ever name dimensions; another
way to split a model is another table. XLA inserts the communication that follows from it.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gist_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> axes of the mesh. Every name must stand here.
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
    "rank": None,  # of an adapter
    # of activations
    "batch": ("data", "fsdp"),
    "lookup": "data",  # rows, where their columns are split as those of an embedding
    "length": None,
    "hidden": None,
}
# These stay whole where they do not divide: the gist token makes 32000 entries 32001, and there may be
# fewer key/value heads than devices.
MAY_STAY_WHOLE = ("vocab", "kv_heads")


def num_shards(mesh: Any, axis: str) -> int:
    """Into how many parts a mesh (or abstract mesh) splits a dimension of that logical axis."""
    over = RULES[axis]
    names = (over,) if isinstance(over, str) else over or ()
    return math.prod(mesh.shape[name] for name in names)


def partition_spec(mesh: Any, axes: Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    """How an array is split, dimension by dimension; one that does not divide evenly stays whole."""
    return PartitionSpec(
        *(
            RULES[axis] if size % num_shards(mesh, axis) == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def fitted_size(mesh: Any, axis: str, size: int) -> int:
    """How many entries a dimension has where a model writes on a mesh (or abstract mesh).

    A vocabulary is padded until it divides over the devices, and key/value heads are repeated, each as
    often as the others.
    """
    if mesh is None or mesh.empty:
        return size
    shards = num_shards(mesh, axis)
    if axis == "vocab":
        return size + -size % shards
    return math.lcm(size, shards) if axis == "kv_heads" else size


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Returns `x` split by the logical axes of its dimensions, and its gradient likewise.

    Does nothing outside `jax.set_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(mesh, axes, x.shape))


def in_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Where the programs of a mesh are to be called; None: anywhere."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def platform() -> str:
    """What a program is for, while it is traced: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of MESH_AXES.

    Args:
      sizes: devices along each axis; -1 is all that are left.
      devices: all there are by default.

    Raises:
      UserError: if the sizes do not make up the number of devices.
    """
    wanted = [sizes[axis] for axis in MESH_AXES]
    devices = jax.devices() if devices is None else devices
    known = math.prod(size for size in wanted if size > 0)
    shape = list(wanted)
    if shape.count(-1) == 1 and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if min(shape) < 1 or math.prod(shape) != len(devices):
        named = ", ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, wanted, strict=True))
        raise UserError(f"config.mesh ({named}) does not fit the {len(devices)} devices there are")
    # An axis may have to be a part of one of a TPU's torus.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def inference_mesh(sizes: Mapping[str, int]) -> Mesh:
    """Makes a mesh of the first devices there are, such as four of `{"tensor": 4}`; other axes are 1.

    Raises:
      UserError: if an axis is unknown, or there are fewer devices.
    """
    if unknown := sorted(sizes.keys() - set(MESH_AXES)):
        raise UserError(f"a mesh has the axes {', '.join(MESH_AXES)}, not {unknown[0]}")
    shape = dict.fromkeys(MESH_AXES, 1) | dict(sizes)
    wanted, devices = math.prod(shape.values()), jax.devices()
    if min(shape.values()) < 1 or wanted > len(devices):
        named = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise UserError(f"the mesh ({named}) does not fit the {len(devices)} device(s) there are")
    return make_mesh(shape, devices[:wanted])


def for_writing(mesh: Mesh, heads: int, mlp: int) -> Mesh:
    """The mesh on which the model of a training run writes: the same devices, in the same order.

    What splits parameters in training would gather them for every token. So as many of these devices as
    divide the heads and the feed-forward network split those, and the others split rows.
    """
    data, fsdp, tensor = mesh.devices.shape
    together = fsdp * tensor
    split = max(n for n in range(1, together + 1) if not (together % n or heads % n or mlp % n))
    placed = mesh.devices.reshape(data * together // split, 1, split)
    return Mesh(placed, MESH_AXES, axis_types=mesh.axis_types)


def named_sharding(mesh: Mesh, axes: Sequence[str], shape: Sequence[int]) -> NamedSharding:
    """The sharding of an array with these logical axes; see `partition_spec`."""
    return NamedSharding(mesh, partition_spec(mesh, axes, shape))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, batch_size: int, accumulate: int = 1) -> NamedSharding:
    """The sharding that splits the rows of a batch over the devices.

    Args:
      accumulate: microbatches of a step, each of which is split so.

    Raises:
      UserError: if the rows of a microbatch do not divide evenly.
    """
    shards = num_shards(mesh, "batch")
    if (batch_size // accumulate) % shards:
        raise UserError(
            f"a batch of {batch_size} rows in {accumulate} microbatch(es) does not divide over the "
            f"{shards} devices of the mesh's data and fsdp axes"
        )
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Indices of the rows of a batch that lie on devices of this process, ascending."""
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def place_rows(
    batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int
) -> dict[str, jax.Array]:
    """Puts a batch on the mesh, of which every process gives its `local_rows`."""
    return {
        name: jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:]))
        for name, x in batch.items()
    }


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of ShapeDtypeStructs with shardings, from a tree of shapes and one of shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
    )


def param_shardings(mesh: Mesh, logical_axes: Any, shapes: Any) -> Any:
    """A NamedSharding for every parameter.

    Args:
      logical_axes: nested dict of tuples of axis names (see `registry.logical_axes`).
      shapes: the same tree of arrays or ShapeDtypeStructs.

    Raises:
      UserError: if an axis has no rule, or a dimension does not divide over the mesh.
    """

    def sharding(path: Any, leaf: Any, axes: tuple[str, ...]) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for axis, size in zip(axes, leaf.shape, strict=True):
            if axis not in RULES:
                raise UserError(f"parameter {name} has axis {axis!r}, for which there is no rule")
            if axis not in MAY_STAY_WHOLE and size % num_shards(mesh, axis):
                raise UserError(
                    f"parameter {name} of shape {leaf.shape} does not divide over the mesh's "
                    f"{num_shards(mesh, axis)} devices along {RULES[axis]}"
                )
        return named_sharding(mesh, axes, leaf.shape)

    # The tuples of axes are leaves: the tree of shapes decides the structure.
    return jax.tree_util.tree_map_with_path(sharding, shapes, logical_axes)
