"""Keys and values of past tokens: plain pytrees, passed in and returned, never hidden state."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, one array per layer so that each is updated in place.

    Slots are not positions: a slot is a place in the array, and the position of the token in it is
    whatever its keys were rotated by. Heads stand before slots, in the order in which attention
    reads them: transposing a cache at every step would cost more than the step's own products.
    """

    keys: tuple[jax.Array, ...]  # per layer [B, K, S, H]
    values: tuple[jax.Array, ...]

    def layer(self, index: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values of one layer."""
        return self.keys[index], self.values[index]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays; of one prompt when the batch is 1."""
        return sum(x.nbytes for x in self.keys + self.values)


def write(cache: jax.Array, new: jax.Array, slot: int | jax.Array) -> jax.Array:
    """Puts `new`, `[B, K, T, H]`, into slots `slot … slot + T - 1` of `cache`, `[B, K, S, H]`."""
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), slot, axis=2)
