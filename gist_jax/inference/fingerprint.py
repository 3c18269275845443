"""Short hashes of weights, by which gist caches and adapters know their base."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from gist_jax.inference.parameters import real_sizes
from gist_jax.models.adapter import Adapter
from gist_jax.models.config import ModelConfig
from gist_jax.models.registry import logical_axes
from gist_jax.models.stack import TRANSPOSED, Params, is_transposed


def base_fingerprint(params: Params, config: ModelConfig) -> str:
    """A short hash of every parameter, and of what the model computes with them.

    Parameters are rounded to bfloat16 first, so that a model keeps its fingerprint in every dtype.
    Fields of the configuration that have their default do not count, so that it keeps it when there are
    new ones.
    """
    said = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default and not field.name.startswith("initializer")
    }
    axes = logical_axes(config, stacked=False, transposed=is_transposed(params))
    return _fingerprint(f"{config.family} {sorted(said.items())}", params, axes, config)


def adapter_fingerprint(adapter: Adapter, config: ModelConfig) -> str:
    """A short hash of every parameter of an adapter, and of what it computes with them.

    Args:
      config: of its base.
    """
    said = f"{adapter.config.alpha} {sorted(adapter.config.targets)}"
    axes = logical_axes(config, stacked=False, adapter=adapter.config)
    return _fingerprint(said, adapter.params, axes, config)


def _fingerprint(said: str, params: Params, axes: Params, config: ModelConfig) -> str:
    digest = hashlib.sha256(said.encode())
    found = {tuple(key.key for key in path): x for path, x in jax.tree.leaves_with_path(params)}
    names = flatten_dict(axes)
    sums = _checksums(
        list(found.values()),
        axes=tuple(names[path] for path in found),
        transposed=tuple(path[-1] == TRANSPOSED for path in found),
        sizes=tuple(real_sizes(config).items()),
    )
    digest.update(np.asarray(sums).tobytes())
    return digest.hexdigest()[:16]


@functools.partial(jax.jit, static_argnames=("axes", "transposed", "sizes"))
def _checksums(
    leaves: Sequence[jax.Array],
    *,
    axes: tuple[tuple[str, ...], ...],
    transposed: tuple[bool, ...],
    sizes: tuple[tuple[str, int], ...],
) -> jax.Array:
    """A checksum of every parameter, summed where its parts lie, without what a mesh added to it."""

    def checksum(x: jax.Array, axes: tuple[str, ...], is_transposed: bool) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
        # Weighted by place: a plain sum would not see values exchanged. Places are counted along every
        # dimension, because a split array that is made flat is gathered.
        place, stride = jnp.zeros(x.shape, jnp.uint32), 1
        for d in range(x.ndim) if is_transposed else reversed(range(x.ndim)):
            index, size = jax.lax.broadcasted_iota(jnp.uint32, x.shape, d), x.shape[d]
            real = dict(sizes).get(axes[d], size)
            if real != size and axes[d] == "vocab":  # padded
                bits = jnp.where(index < real, bits, 0)
            elif real != size:  # repeated
                repeats = np.uint32(size // real)
                bits, index = jnp.where(index % repeats == 0, bits, 0), index // repeats
            place += index * np.uint32(stride % 2**32)
            stride *= real
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return jnp.stack([checksum(*each) for each in zip(leaves, axes, transposed, strict=True)])
