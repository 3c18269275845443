"""Parameters as training has them, made ready for inference: cast, unrolled, and laid out for a machine.

On a mesh heads, feed-forward network and vocabulary are split over its axis `tensor`, so that a step
sends activations and no parameter. What does not divide is fitted: the vocabulary is padded with tokens
that are never written, and key/value heads are repeated where there are fewer than devices. Nobody
outside sees that: exports, fingerprints and gist caches are those of one device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from gist_jax.errors import UserError
from gist_jax.models.adapter import Adapter
from gist_jax.models.config import ModelConfig
from gist_jax.models.registry import init, logical_axes
from gist_jax.models.stack import TRANSPOSED, Params, is_transposed
from gist_jax.sharding import fitted_size, named_sharding, num_shards, param_shardings

Path = tuple[Any, ...]


def check_mesh(config: ModelConfig, mesh: Mesh) -> None:
    """Raises a UserError if a model cannot be split over the devices of a mesh."""
    shards = num_shards(mesh, "heads")
    for count, what in ((config.num_heads, "heads"), (config.intermediate_size, "feed-forward units")):
        if count % shards:
            raise UserError(
                f"the {count} {what} of the model do not divide over the {shards} devices of mesh.tensor"
            )


def load_shardings(config: ModelConfig, mesh: Mesh | None) -> Params | None:
    """Where stacked parameters are to lie that are loaded for `for_inference`; None: one device."""
    if mesh is None:
        return None
    check_mesh(config, mesh)
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return param_shardings(mesh, logical_axes(config), shapes)


def for_inference(
    params: Params, dtype: str, config: ModelConfig, mesh: Mesh | None, *, donate: bool = False
) -> Params:
    """Casts stacked parameters once, unrolls their layers, and on a CPU transposes their kernels.

    Args:
      mesh: of the devices that split them; None: one device.
      donate: gives up the stacked parameters one by one, so that only one is there in both forms.

    Raises:
      UserError: if the model cannot be split over the mesh.
    """
    if mesh is not None:
        check_mesh(config, mesh)
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    # A transposed kernel whose heads are split would be gathered: its outputs are one dimension then.
    transposes = platform == "cpu" and (mesh is None or num_shards(mesh, "heads") == 1)

    def pieces(x: jax.Array, **how: Any) -> list[jax.Array]:
        made = _pieces(x, dtype=dtype, mesh=mesh, **how)
        if donate:
            x.delete()
        return made

    return _unrolled(params, logical_axes(config), transposes, pieces)


def adapter_for_inference(
    adapter: Adapter, dtype: str, config: ModelConfig, mesh: Mesh | None
) -> Adapter:
    """Casts the parameters of an adapter beside stacked layers, and unrolls these."""
    axes = logical_axes(config, adapter=adapter.config)
    pieces = functools.partial(_pieces, dtype=dtype, mesh=mesh)
    return Adapter(_unrolled(adapter.params, axes, False, pieces), adapter.config)


def abstract_for_inference(shapes: Params, dtype: str, config: ModelConfig, mesh: Mesh) -> Params:
    """ShapeDtypeStructs with shardings of what `for_inference` makes for an accelerator.

    Args:
      shapes: of stacked parameters.
    """
    check_mesh(config, mesh)

    def pieces(x: Any, **how: Any) -> list[jax.ShapeDtypeStruct]:
        made = jax.eval_shape(functools.partial(_pieces, dtype=dtype, mesh=mesh, **how), x)
        return [
            jax.ShapeDtypeStruct(y.shape, dtype, sharding=named_sharding(mesh, how["axes"], y.shape))
            for y in made
        ]

    return _unrolled(shapes, logical_axes(config), False, pieces)


def as_exported(params: Params, config: ModelConfig) -> Params:
    """Parameters for inference without what a mesh added to them."""
    axes = flatten_dict(logical_axes(config, stacked=False, transposed=is_transposed(params)))
    real = real_sizes(config)

    def cut(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        for d, axis in enumerate(axes):
            size = real.get(axis, x.shape[d])
            step = x.shape[d] // size if axis == "kv_heads" else 1
            if x.shape[d] != size:
                x = jax.lax.slice_in_dim(x, 0, size * step, step, d)
        return x

    return unflatten_dict({path: cut(x, axes[path]) for path, x in flatten_dict(params).items()})


def real_sizes(config: ModelConfig) -> dict[str, int]:
    """The sizes of those logical axes that a mesh may add to."""
    return {"vocab": config.vocab_size, "kv_heads": config.num_kv_heads}


def _unrolled(params: Params, axes: Params, transposes: bool, pieces: Callable[..., list]) -> Params:
    """A dict per layer of what `pieces` makes of every parameter, and kernels by their name."""
    names, made = flatten_dict(axes), {}
    for path, x in flatten_dict(params).items():
        layered, is_kernel = names[path][0] == "layers", transposes and path[-1] == "kernel"
        found = pieces(x, axes=names[path][layered:], layered=layered, transposes=is_kernel)
        if is_kernel:
            path = (*path[:-1], TRANSPOSED)
        at = path.index("layers") + 1 if layered else 0
        for i, piece in enumerate(found):
            made[(*path[:at], i, *path[at:]) if layered else path] = piece
    return unflatten_dict(made)


@functools.partial(jax.jit, static_argnames=("dtype", "mesh", "axes", "layered", "transposes"))
def _pieces(
    x: jax.Array,
    *,
    dtype: str,
    mesh: Mesh | None,
    axes: tuple[str, ...],
    layered: bool,
    transposes: bool,
) -> list[jax.Array]:
    """The layers of a stacked parameter, or one that has none, fitted to a mesh and split over it."""

    def piece(x: jax.Array) -> jax.Array:
        x = x.astype(dtype)
        for d, axis in enumerate(axes if mesh is not None else ()):
            more = fitted_size(mesh, axis, x.shape[d])
            if axis == "kv_heads":
                x = jnp.repeat(x, more // x.shape[d], d)
            elif more != x.shape[d]:
                x = jnp.pad(x, [(0, more - x.shape[d] if i == d else 0) for i in range(x.ndim)])
        x = x.T if transposes else x
        if mesh is None:
            return x
        names = axes[::-1] if transposes else axes
        return jax.lax.with_sharding_constraint(x, named_sharding(mesh, names, x.shape))

    return [piece(y) for y in x] if layered else [piece(x)]
