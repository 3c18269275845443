"""What is kept of past tokens: plain pytrees, passed in and returned, never hidden state."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from gist_jax.sharding import constrain, named_sharding

KeyValue = tuple[jax.Array, jax.Array]  # keys and values of one layer, each [B, K, S, H]
AXES = ("batch", "kv_heads", "length", "head_dim")  # logical axes of both


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, one array per layer so that each is updated in place.

    Slots are not positions: a slot is a place in the array, and the position of the token in it is
    whatever its keys were rotated by. Heads stand before slots, in the order in which attention
    reads them: transposing a cache at every step would cost more than the step's own matmuls.
    """

    # Per layer [B, K, S, H]. A cache of `empty` for a single row is stored as [K, S, H]: XLA would take
    # its batch dimension away for attention, and copy the cache for that in every step. Only this
    # file knows.
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @classmethod
    def of_layers(cls, layers: Iterable[KeyValue]) -> "KVCache":
        """Makes a cache of the keys and values of one layer after the other."""
        keys, values = zip(*layers, strict=True)
        return cls(keys, values)

    @classmethod
    def empty(cls, num_layers: int, shape: tuple[int, int, int, int], dtype: Any) -> "KVCache":
        """Makes a cache of zeros to write to; `shape` is `[B, K, S, H]` of a layer."""
        return cls.to_write(
            (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(num_layers)
        )

    def layer(self, index: int) -> KeyValue:
        """Keys and values of one layer, each `[B, K, S, H]`."""
        return as_block((self.keys[index], self.values[index]))

    @classmethod
    def to_write(cls, blocks: Iterable[KeyValue]) -> "KVCache":
        """Makes a cache to write to of the keys and values of every layer, each `[B, K, S, H]`."""

        def stored(x: jax.Array) -> jax.Array:
            first = 1 if x.shape[0] == 1 else 0
            return constrain(x.reshape(x.shape[first:]), *AXES[first:])

        return cls.of_layers((stored(keys), stored(values)) for keys, values in blocks)

    @property
    def layers(self) -> list[KeyValue]:
        """Keys and values of every layer, each `[B, K, S, H]`."""
        return [self.layer(i) for i in range(len(self.keys))]

    def with_heads(self, count: int) -> "KVCache":
        """The same cache of blocks `[B, K, S, H]` with every head repeated, or taken once of several."""

        def fitted(x: jax.Array) -> jax.Array:
            heads = x.shape[1]
            return jnp.repeat(x, count // heads, axis=1) if count > heads else x[:, :: heads // count]

        return jax.tree.map(fitted, self)

    def write(self, index: int, new: KeyValue, slot: int | jax.Array) -> KeyValue:
        """Writes keys and values, each `[B, K, T, H]`, into slots `slot … slot + T - 1` of a layer.

        Returns:
          The layer's keys and values as the cache stores them, to make the grown cache of.
        """

        def written(cache: jax.Array, x: jax.Array) -> jax.Array:
            x = x.astype(cache.dtype).reshape(*cache.shape[:-2], *x.shape[2:])
            return jax.lax.dynamic_update_slice_in_dim(cache, x, slot, axis=-2)

        return written(self.keys[index], new[0]), written(self.values[index], new[1])

    def with_shardings(self, mesh: jax.sharding.Mesh) -> "KVCache":
        """The same cache of ShapeDtypeStructs, with the sharding that it has on a mesh."""

        def placed(x: Any) -> jax.ShapeDtypeStruct:
            sharding = named_sharding(mesh, AXES[-x.ndim :], x.shape)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(placed, self)

    @property
    def num_slots(self) -> int:
        """How many tokens the cache has room for."""
        return self.keys[0].shape[-2]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(x.nbytes for x in self.keys + self.values)


def as_block(stored: KeyValue) -> KeyValue:
    """A layer's keys and values, each `[B, K, S, H]`, of what a cache stores."""
    keys, values = (x if x.ndim == 4 else x.reshape(1, *x.shape) for x in stored)
    return keys, values


def join_slots(first: jax.Array, second: jax.Array, axis: int) -> jax.Array:
    """The slots of both arrays `[B, …]` along an axis; a first of batch 1 stands before every row."""
    first = jnp.broadcast_to(first, (second.shape[0], *first.shape[1:]))
    return jnp.concatenate([first, second], axis=axis)


def take_slots(x: jax.Array, slots: jax.Array, axis: int) -> jax.Array:
    """Picks the entries at slots, int `[B, G]`, of each row along an axis of `[B, …]`."""
    index = slots.reshape(slots.shape[0], *[1] * (axis - 1), -1, *[1] * (x.ndim - axis - 1))
    return jnp.take_along_axis(x, index, axis=axis)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What a model keeps of S tokens of a prompt: all that later tokens may look at."""

    cache: KVCache  # of the layers that ran over the prompt: [B, K, S, H]
    positions: jax.Array  # int32 [B, S]
    states: jax.Array | None  # [B, S, D] final states of an encoder; None without one

    def take(self, slots: jax.Array) -> "Memory":
        """Picks the entries at slots, int `[B, G]`, of each row."""
        return Memory(
            jax.tree.map(lambda x: take_slots(x, slots, 2), self.cache),
            take_slots(self.positions, slots, 1),
            None if self.states is None else take_slots(self.states, slots, 1),
        )

    def join(self, later: "Memory") -> "Memory":
        """These tokens and later ones, `[B, S + T]`; of batch 1 they stand before every row."""
        states = None
        if self.states is not None and later.states is not None:
            states = join_slots(self.states, later.states, 1)
        return Memory(
            jax.tree.map(lambda a, b: join_slots(a, b, 2), self.cache, later.cache),
            join_slots(self.positions, later.positions, 1),
            states,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states."""
        return self.cache.nbytes + (0 if self.states is None else self.states.nbytes)
