"""T5 (arXiv 1910.10683), v1.1 and FLAN-T5 in Flax NNX. The methods are described in
gist_jax.models.model.

Attention scores are not scaled, and positions come in as a learned bias on them, which all layers of a
stack share.

Shape letters: B batch, T query length, S key length, P slots before the tokens of a call, D model dim,
F feed-forward dim, N heads, H head dim, V vocabulary.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gist_jax.models.axes import constrain
from gist_jax.models.cache import KeyValue, KVCache, Memory, empty
from gist_jax.models.config import T5Config
from gist_jax.models.dropout import Dropout
from gist_jax.models.layers import (
    HIDDEN,
    VOCAB,
    Attention,
    Projection,
    RMSNorm,
    attend,
    attend_cached,
    attend_past,
    embed,
    head_logits,
    normal_param,
)
from gist_jax.models.model import Begun, Tokens
from gist_jax.models.stack import make_layers, scan_layers


def relative_bucket(
    distance: jax.Array, num_buckets: int, max_distance: int, bidirectional: bool
) -> jax.Array:
    """Buckets of relative positions (arXiv 1910.10683, section 2.1), as int32 in the given shape.

    Args:
      distance: int, position of the key minus that of the query.
      num_buckets: half of them exact, half logarithmic up to `max_distance`; where keys may stand on
        both sides (`bidirectional`), each side has half of all.
    """
    per_side = num_buckets // 2 if bidirectional else num_buckets
    exact = per_side // 2
    steps = np.arange(max_distance + 1)
    logarithm = np.log(np.maximum(steps, exact) / np.float32(exact), dtype=np.float32)
    scaled = logarithm / np.float32(np.log(max_distance / exact)) * np.float32(per_side - exact)
    coarse = np.minimum(exact + scaled.astype(np.int32), per_side - 1)
    # A table, so that no device's logarithm can round a bucket's edge differently.
    table = jnp.asarray(np.where(steps < exact, steps, coarse), jnp.int32)
    behind = jnp.abs(distance) if bidirectional else jnp.maximum(-distance, 0)
    bucket = table[jnp.minimum(behind, max_distance)]
    return bucket + per_side * (distance > 0) if bidirectional else bucket


class FeedForward(nnx.Module):
    def __init__(self, config: T5Config, dtype, rngs: nnx.Rngs):
        d, f, factor = config.hidden_size, config.intermediate_size, config.initializer_factor
        into = dict(stddev=factor * d**-0.5, dtype=dtype, rngs=rngs)
        if config.gated_gelu:
            self.gate = Projection("btd,df->btf", (d, f), ("embed", "mlp"), **into)
        self.up = Projection("btd,df->btf", (d, f), ("embed", "mlp"), **into)
        out_of = dict(stddev=factor * f**-0.5, dtype=dtype, rngs=rngs)
        self.down = Projection("btf,fd->btd", (f, d), ("mlp", "embed"), **out_of)
        self.gated = config.gated_gelu

    def __call__(self, x, drop):
        up = self.up(x)
        inner = jax.nn.gelu(self.gate(x), approximate=True) * up if self.gated else jax.nn.relu(up)
        return self.down(drop(inner))


def _attention(config: T5Config, dtype, rngs: nnx.Rngs) -> Attention:
    d, n, h, factor = (
        config.hidden_size,
        config.num_heads,
        config.head_dim,
        config.initializer_factor,
    )
    stddevs = factor * (d * h) ** -0.5, factor * d**-0.5, factor * (n * h) ** -0.5
    return Attention((d, n, n, h), stddevs, dtype, rngs)


def _none(x: jax.Array) -> jax.Array:
    return x


class Block(nnx.Module):
    """A layer of the encoder, or of the decoder, which looks at the encoder's states as well."""

    def __init__(self, config: T5Config, dtype, crosses: bool, rngs: nnx.Rngs):
        def norm():
            return RMSNorm(config.hidden_size, config.norm_eps, dtype)

        self.attention_norm, self.attention = norm(), _attention(config, dtype, rngs)
        if crosses:
            self.cross_attention_norm, self.cross_attention = norm(), _attention(config, dtype, rngs)
        self.feed_forward_norm, self.feed_forward = norm(), FeedForward(config, dtype, rngs)

    def attend_self(
        self,
        x,
        bias,
        before=(),
        past=None,
        slot=None,
        implementation=None,
        dropout: Dropout | None = None,
    ):
        """x after self-attention, and its keys and values."""
        q, k, v = self.attention(self.attention_norm(x))
        options = dict(scale=1.0, implementation=implementation, dropout=dropout)
        attended, new = attend_past(q, k, v, bias, before, past, slot, **options)
        return x + (dropout or _none)(self.attention.output(attended)), new

    def attend_states(self, x, states, bias, implementation, dropout: Dropout | None):
        """x after cross-attention to an encoder's states, `[B, S, D]`."""
        q = self.cross_attention.query(self.cross_attention_norm(x))
        k, v = self.cross_attention.key(states), self.cross_attention.value(states)
        options = dict(scale=1.0, implementation=implementation, dropout=dropout)
        attended = attend(q, k, v, bias, **options)
        return x + (dropout or _none)(self.cross_attention.output(attended))

    def attend_context(self, x, blocks: Sequence[KeyValue], bias):
        """x after cross-attention to keys and values computed before."""
        q = self.cross_attention.query(self.cross_attention_norm(x))
        return x + self.cross_attention.output(attend_cached(q, blocks, bias, scale=1.0))

    def feed(self, x, dropout: Dropout | None = None):
        drop = dropout or _none
        x = x + drop(self.feed_forward(self.feed_forward_norm(x), drop))
        return constrain(x, *HIDDEN)


class Stack(nnx.Module):
    """The encoder or the decoder."""

    def __init__(self, config: T5Config, dtype, crosses: bool, stacked: bool, rngs: nnx.Rngs):
        d, n = config.hidden_size, config.num_heads
        self.config, self.bidirectional = config, not crosses
        self.num_layers = config.num_decoder_layers if crosses else config.num_layers
        stddev = config.initializer_factor * d**-0.5
        axes = ("buckets", "heads")
        self.relative_bias = normal_param(rngs, (config.num_buckets, n), axes, stddev, dtype)
        make = functools.partial(Block, config, dtype, crosses)
        self.layers = make_layers(make, self.num_layers, stacked, rngs)
        self.norm = RMSNorm(d, config.norm_eps, dtype)

    def with_positions(
        self, bias: jax.Array, queries: jax.Array, keys: jax.Array, training: bool = False
    ) -> jax.Array:
        """The bias `[B, 1, T, S]` with that of positions, int `[B or 1, T]` and `[B or 1, S]`, added.

        Args:
          training: where all rows share their positions the bias has a cheap gradient.

        Returns:
          `[B, N, T, S]` in the dtype of `bias`.
        """
        distance = keys[:, None, :] - queries[:, :, None]
        config = self.config
        buckets = relative_bucket(distance, config.num_buckets, config.max_distance, self.bidirectional)
        weights = self.relative_bias.astype(bias.dtype)
        if not training or len(buckets) > 1:
            return bias + jnp.moveaxis(weights[buckets], 3, 1)
        # As a product, whose gradient is one too: that of a look-up would be a scatter.
        chosen = jax.nn.one_hot(buckets, config.num_buckets, dtype=bias.dtype)
        return bias + jnp.einsum("btsk,kn->bnts", chosen, weights, precision=jax.lax.Precision.HIGHEST)


class T5(nnx.Module):
    """A model of the T5 family; `stacked` chooses between scanned and separate layers."""

    def __init__(self, config: T5Config, dtype, stacked: bool, rngs: nnx.Rngs):
        v, d, factor = config.vocab_size, config.hidden_size, config.initializer_factor
        self.config = config
        self.embedding = normal_param(rngs, (v, d), VOCAB, factor, dtype)
        self.encoder = Stack(config, dtype, False, stacked, rngs)
        self.decoder = Stack(config, dtype, True, stacked, rngs)
        if not config.tie_embeddings:
            self.head = Projection("btd,dv->btv", (d, v), VOCAB[::-1], factor, dtype, rngs)

    def forward(
        self,
        read: Tokens,
        written: Tokens,
        *,
        dtype=None,
        remat: str = "none",
        implementation: str | None = None,
        dropout: Dropout | None = None,
    ) -> jax.Array:
        drop = dropout or _none
        length = read.positions.shape[1]
        options = dict(remat=remat, dropout=dropout)
        bias = self.encoder.with_positions(read.bias, read.positions, read.positions, training=True)

        def encode(block: Block, x, dropout):
            x, _ = block.attend_self(x, bias, implementation=implementation, dropout=dropout)
            return block.feed(x, dropout)

        x = drop(embed(self.embedding, read.ids, dtype))
        x = scan_layers(self.encoder.layers, encode, x, **options)
        states = drop(self.encoder.norm(x))

        cross_bias, own_bias = written.bias[..., :length], written.bias[..., length:]
        own_bias = self.decoder.with_positions(
            own_bias, written.positions, written.positions, training=True
        )

        def decode(block: Block, x, dropout):
            x, _ = block.attend_self(x, own_bias, implementation=implementation, dropout=dropout)
            x = block.attend_states(x, states, cross_bias, implementation, dropout)
            return block.feed(x, dropout)

        x = drop(embed(self.embedding, written.ids, dtype))
        x = scan_layers(self.decoder.layers, decode, x, **options)
        return drop(self.decoder.norm(x))

    def read(self, tokens: Tokens, before: Memory | None = None) -> tuple[jax.Array, Memory]:
        keys = tokens.positions
        if before is not None:
            rows = keys.shape[0], before.positions.shape[1]
            keys = jnp.concatenate([jnp.broadcast_to(before.positions, rows), keys], axis=1)
        bias = self.encoder.with_positions(tokens.bias, tokens.positions, keys)
        x = embed(self.embedding, tokens.ids)
        key_values: list[KeyValue] = []
        for i, block in enumerate(self.encoder.layers):
            blocks = () if before is None else (before.cache.layer(i),)
            x, key_value = block.attend_self(x, bias, blocks)
            x = block.feed(x)
            key_values.append(key_value)
        states = self.encoder.norm(x)
        return states, Memory(KVCache.of_layers(key_values), tokens.positions, states)

    def context(self, memory: Memory) -> KVCache:
        """Keys and values of the decoder's cross-attention."""
        if memory.crossing is not None:
            return memory.crossing
        crossing = [block.cross_attention for block in self.decoder.layers]
        return KVCache.of_layers(
            (c.key(memory.states).swapaxes(1, 2), c.value(memory.states).swapaxes(1, 2))
            for c in crossing
        )

    def begin(
        self, hidden: jax.Array, position: jax.Array, bias: jax.Array, context: Sequence[KVCache]
    ) -> Begun:
        """Writes the start token, which predicts the first of the output."""
        config, rows = self.config, hidden.shape[0]
        slots = bias.shape[-1] - sum(cache.num_slots for cache in context)
        shape = rows, config.num_heads, slots, config.head_dim
        cache = empty(config.num_decoder_layers, shape, hidden.dtype)
        ids = jnp.full((rows, 1), config.decoder_start_token)
        first = jnp.zeros((1, 1), jnp.int32)  # the decoder's positions are the same in all rows
        hidden, cache = self.write(Tokens(ids, first, bias), context, cache, 0)
        return Begun(hidden, cache, 1, first + 1)

    def write(
        self, tokens: Tokens, context: Sequence[KVCache], cache: KVCache, slot: int | jax.Array
    ) -> tuple[jax.Array, KVCache]:
        seen = sum(block.num_slots for block in context)
        cross_bias, own_bias = tokens.bias[..., :seen], tokens.bias[..., seen:]
        slots = jnp.arange(cache.num_slots)[None]  # in the decoder, slots are positions
        own_bias = self.decoder.with_positions(own_bias, tokens.positions, slots)
        x = embed(self.embedding, tokens.ids)
        key_values: list[KeyValue] = []
        for i, block in enumerate(self.decoder.layers):
            x, key_value = block.attend_self(x, own_bias, past=cache.layer(i), slot=slot)
            x = block.feed(block.attend_context(x, [c.layer(i) for c in context], cross_bias))
            key_values.append(key_value)
        return self.decoder.norm(x), KVCache.of_layers(key_values)

    def logits(self, hidden: jax.Array) -> jax.Array:
        if self.config.scale_outputs:
            hidden = hidden * self.config.hidden_size**-0.5
        return head_logits(self, hidden)
