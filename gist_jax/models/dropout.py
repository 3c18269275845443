"""Dropout whose masks depend on the step and the row alone."""

import jax
import jax.numpy as jnp


class Dropout:
    """Drops elements of arrays `[B, …]`, with another mask at every call.

    Every row has a key of its own, so that its masks do not depend on the microbatch or the device the
    row is computed in.
    """

    def __init__(self, rate: float, keys: jax.Array) -> None:
        """`keys`: `[B]`."""
        self.rate, self._keys, self._calls = rate, keys, 0

    def _next(self) -> jax.Array:
        self._calls += 1  # while tracing: each place in a program has a number of its own
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(self._keys, self._calls)

    def __call__(self, x: jax.Array) -> jax.Array:
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(self._next())
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)

    def layer_keys(self, num_layers: int) -> jax.Array:
        """Keys `[num_layers, B]`, for a Dropout in every layer."""
        return jax.vmap(lambda key: jax.random.split(key, num_layers), out_axes=1)(self._next())
