"""What is kept of past tokens: plain pytrees, passed in and returned, never hidden state."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from gist_jax.models.axes import constrain

# Keys and values of one layer, each [B, K, S, H]. A cache that is written to has no dimension for a
# batch of one: XLA would take it away for attention, and copy the cache for that in every step.
KeyValue = tuple[jax.Array, jax.Array]


AXES = ("batch", "kv_heads", "length", "head_dim")  # names of its dimensions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, one array per layer so that each is updated in place.

    Slots are not positions: a slot is a place in the array, and the position of the token in it is
    whatever its keys were rotated by. Heads stand before slots, in the order in which attention
    reads them: transposing a cache at every step would cost more than the step's own products.
    """

    keys: tuple[jax.Array, ...]  # per layer [B, K, S, H], or [K, S, H] of one row that is written
    values: tuple[jax.Array, ...]

    @classmethod
    def of_layers(cls, layers: Iterable[KeyValue]) -> "KVCache":
        """From the keys and values of one layer after the other."""
        keys, values = zip(*layers, strict=True)
        return cls(keys, values)

    def layer(self, index: int) -> KeyValue:
        """Keys and values of one layer."""
        return self.keys[index], self.values[index]

    @property
    def num_slots(self) -> int:
        return self.keys[0].shape[-2]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays; of one prompt when the batch is 1."""
        return sum(x.nbytes for x in self.keys + self.values)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What a model keeps of S tokens it has read, all that later tokens may look at."""

    cache: KVCache  # of the layers that read: [B, K, S, H]
    positions: jax.Array  # int32 [B, S]
    states: jax.Array | None  # [B, S, D] final states of an encoder; None without one
    # Keys and values of the decoder's cross-attention, which follow from the states: memory in exchange
    # for computing them anew for every output.
    crossing: KVCache | None = None

    def take(self, slots: jax.Array) -> "Memory":
        """The entries at slots, int `[B, G]`, of each row, without `crossing`."""

        def at(x: jax.Array, axis: int) -> jax.Array:
            index = slots.reshape(slots.shape[0], *[1] * (axis - 1), -1, *[1] * (x.ndim - axis - 1))
            return jnp.take_along_axis(x, index, axis=axis)

        return Memory(
            jax.tree.map(lambda x: at(x, 2), self.cache),
            at(self.positions, 1),
            None if self.states is None else at(self.states, 1),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states."""
        return sum(x.nbytes for x in (self.cache, self.states, self.crossing) if x is not None)


def empty(num_layers: int, shape: tuple[int, int, int, int], dtype) -> KVCache:
    """A cache of zeros to write to.

    Args:
      shape: `[B, K, S, H]` of a layer.
    """
    first = 1 if shape[0] == 1 else 0

    def zeros() -> jax.Array:
        return constrain(jnp.zeros(shape[first:], dtype), *AXES[first:])

    return KVCache.of_layers((zeros(), zeros()) for _ in range(num_layers))


def write(cache: jax.Array, new: jax.Array, slot: int | jax.Array) -> jax.Array:
    """Puts `new`, `[B, K, T, H]`, into slots `slot … slot + T - 1` of a cache of `empty`."""
    new = new.astype(cache.dtype).reshape(*cache.shape[:-2], *new.shape[2:])
    return jax.lax.dynamic_update_slice_in_dim(cache, new, slot, axis=-2)
