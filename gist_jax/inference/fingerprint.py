"""Short hashes of weights, by which gist caches and adapters know their base."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gist_jax.models.adapter import Adapter
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import TRANSPOSED, Params


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
    return _fingerprint(f"{config.family} {sorted(said.items())}", params)


def adapter_fingerprint(adapter: Adapter) -> str:
    """A short hash of every parameter of an adapter, and of what it computes with them."""
    return _fingerprint(f"{adapter.config.alpha} {sorted(adapter.config.targets)}", adapter.params)


def _fingerprint(said: str, params: Params) -> str:
    digest = hashlib.sha256(said.encode())
    digest.update(np.asarray(_checksums(params)).tobytes())
    return digest.hexdigest()[:16]


@jax.jit
def _checksums(params: Params) -> jax.Array:
    def checksum(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        x = x.T if path[-1] == jax.tree_util.DictKey(TRANSPOSED) else x
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16).reshape(-1)
        # Weighted by place: a plain sum would not see values exchanged.
        weights = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
        return jnp.sum(bits.astype(jnp.uint32) * weights, dtype=jnp.uint32)

    return jnp.stack(jax.tree.leaves(jax.tree_util.tree_map_with_path(checksum, params)))
