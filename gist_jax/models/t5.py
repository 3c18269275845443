"""T5 (arXiv 1910.10683), v1.1 and FLAN-T5 in Flax NNX. The methods are described in
gist_jax.models.model.

Attention logits are not scaled, and positions come in as a learned bias on them, which all layers of a
stack share.

Shape letters: B batch, T query length, S key length, P slots before the tokens of a call, D model dim,
F feed-forward dim, N heads, H head dim, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gist_jax.models.attention import (
    Attend,
    Implementation,
    attend,
    attend_after,
    attend_cached,
    heads_first,
)
from gist_jax.models.cache import KeyValue, KVCache, Memory, as_block, take_slots
from gist_jax.models.config import T5Config
from gist_jax.models.dropout import Dropout
from gist_jax.models.layers import (
    HIDDEN,
    VOCAB,
    Attention,
    Projection,
    RMSNorm,
    embed,
    embed_tokens,
    head_logits,
    normal_param,
)
from gist_jax.models.model import DecodeState, Tokens
from gist_jax.models.stack import make_layers, scan_layers
from gist_jax.sharding import constrain


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
    return bucket + jnp.where(distance > 0, per_side, 0) if bidirectional else bucket


class FeedForward(nnx.Module):
    """The feed-forward network: ReLU (v1.0) or gated GELU (v1.1, arXiv 2002.05202)."""

    def __init__(self, config: T5Config, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        d, f, factor = config.hidden_size, config.intermediate_size, config.initializer_factor
        into: dict[str, Any] = dict(stddev=factor * d**-0.5, dtype=dtype, rngs=rngs)
        if config.gated_gelu:
            self.gate = Projection((d, f), ("embed", "mlp"), **into)
        self.up = Projection((d, f), ("embed", "mlp"), **into)
        out_of: dict[str, Any] = dict(stddev=factor * f**-0.5, dtype=dtype, rngs=rngs)
        self.down = Projection((f, d), ("mlp", "embed"), **out_of)
        self.gated = config.gated_gelu

    def __call__(self, x: jax.Array, drop: "Drop", adapts: jax.Array | None = None) -> jax.Array:
        up = self.up(x, adapts)
        if self.gated:
            inner = jax.nn.gelu(self.gate(x, adapts), approximate=True) * up
        else:
            inner = jax.nn.relu(up)
        return self.down(drop(inner), adapts)


def _attention(config: T5Config, dtype: DTypeLike, rngs: nnx.Rngs) -> Attention:
    d, n, h, factor = (
        config.hidden_size,
        config.num_heads,
        config.head_dim,
        config.initializer_factor,
    )
    stddevs = factor * (d * h) ** -0.5, factor * d**-0.5, factor * (n * h) ** -0.5
    return Attention((d, n, n, h), stddevs, dtype, rngs)


Drop = Callable[[jax.Array], jax.Array]


def _keep(x: jax.Array) -> jax.Array:
    """What stands in place of dropout where there is none."""
    return x


class Block(nnx.Module):
    """A layer of the encoder, or of the decoder, which looks at the encoder's states as well."""

    def __init__(self, config: T5Config, dtype: DTypeLike, is_decoder: bool, rngs: nnx.Rngs) -> None:
        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.norm_eps, dtype)

        self.attention_norm, self.attention = norm(), _attention(config, dtype, rngs)
        if is_decoder:
            self.cross_attention_norm, self.cross_attention = norm(), _attention(config, dtype, rngs)
        self.feed_forward_norm, self.feed_forward = norm(), FeedForward(config, dtype, rngs)

    def attend_self(
        self, x: jax.Array, attend: Attend, drop: Drop = _keep, adapts: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """`x` after self-attention, and what `attend` keeps."""
        with jax.named_scope("attention"):
            attended, kept = attend(*self.attention(self.attention_norm(x), adapts))
            return x + drop(self.attention.output(attended, adapts)), kept

    def attend_states(
        self,
        x: jax.Array,
        states: jax.Array,
        bias: jax.Array,
        implementation: Implementation,
        dropout: Dropout | None,
    ) -> jax.Array:
        """`x` after cross-attention to an encoder's states, `[B, S, D]`."""
        with jax.named_scope("cross_attention"):
            q = self.cross_attention.query(self.cross_attention_norm(x))
            k, v = self.cross_attention.key(states), self.cross_attention.value(states)
            options: dict[str, Any] = dict(scale=1.0, implementation=implementation, dropout=dropout)
            attended = attend(q, k, v, bias, **options)
            return x + (dropout or _keep)(self.cross_attention.output(attended))

    def attend_context(self, x: jax.Array, blocks: Sequence[KeyValue], bias: jax.Array) -> jax.Array:
        """`x` after cross-attention to keys and values computed before."""
        with jax.named_scope("cross_attention"):
            q = self.cross_attention.query(self.cross_attention_norm(x))
            return x + self.cross_attention.output(attend_cached(q, blocks, bias, scale=1.0))

    def feed(self, x: jax.Array, drop: Drop = _keep, adapts: jax.Array | None = None) -> jax.Array:
        """`x` after the feed-forward network."""
        with jax.named_scope("feed_forward"):
            x = x + drop(self.feed_forward(self.feed_forward_norm(x), drop, adapts))
        return constrain(x, *HIDDEN)


class Stack(nnx.Module):
    """The encoder or the decoder."""

    def __init__(
        self, config: T5Config, dtype: DTypeLike, is_decoder: bool, stacked: bool, rngs: nnx.Rngs
    ) -> None:
        d, n = config.hidden_size, config.num_heads
        self.config, self.bidirectional = config, not is_decoder
        self.num_layers = config.num_decoder_layers if is_decoder else config.num_layers
        stddev = config.initializer_factor * d**-0.5
        axes = ("buckets", "heads")
        self.relative_bias = normal_param(rngs, (config.num_buckets, n), axes, stddev, dtype)
        make = functools.partial(Block, config, dtype, is_decoder)
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
        # As a matmul, whose gradient is one too: that of a look-up would be a scatter.
        chosen = jax.nn.one_hot(buckets, config.num_buckets, dtype=bias.dtype)
        return bias + jnp.einsum("btsk,kn->bnts", chosen, weights, precision=jax.lax.Precision.HIGHEST)


class T5(nnx.Module):
    """A model of the T5 family; `stacked` chooses between scanned and unrolled layers."""

    def __init__(self, config: T5Config, dtype: DTypeLike, stacked: bool, rngs: nnx.Rngs) -> None:
        v, d, factor = config.vocab_size, config.hidden_size, config.initializer_factor
        self.config = config
        self.embedding = normal_param(rngs, (v, d), VOCAB, factor, dtype)
        self.encoder = Stack(config, dtype, False, stacked, rngs)
        self.decoder = Stack(config, dtype, True, stacked, rngs)
        if not config.tie_embeddings:
            self.head = Projection((d, v), VOCAB[::-1], factor, dtype, rngs)

    def forward(
        self,
        inputs: Tokens,
        decoder_inputs: Tokens,
        *,
        dtype: DTypeLike | None = None,
        remat: str = "none",
        implementation: Implementation = "blocks",
        dropout: Dropout | None = None,
    ) -> jax.Array:
        drop = dropout or _keep
        options: dict[str, Any] = dict(remat=remat, dropout=dropout)

        def attend_with(bias: jax.Array, dropout: Dropout | None) -> Attend:
            settings: dict[str, Any] = dict(scale=1.0, implementation=implementation, dropout=dropout)
            return lambda q, k, v: (attend(q, k, v, bias, **settings), None)

        positions = inputs.positions
        bias = self.encoder.with_positions(inputs.bias, positions, positions, training=True)

        def encode(block: Block, x: jax.Array, dropout: Dropout | None) -> jax.Array:
            drop = dropout or _keep
            x, _ = block.attend_self(x, attend_with(bias, dropout), drop, inputs.adapts)
            return block.feed(x, drop, inputs.adapts)

        x = drop(embed_tokens(self, inputs, dtype))
        x = scan_layers(self.encoder.layers, encode, x, **options)
        states = drop(self.encoder.norm(x))

        cross_bias, own_bias = jnp.split(decoder_inputs.bias, [positions.shape[1]], axis=-1)
        positions = decoder_inputs.positions
        own_bias = self.decoder.with_positions(own_bias, positions, positions, training=True)

        def decode(block: Block, x: jax.Array, dropout: Dropout | None) -> jax.Array:
            x, _ = block.attend_self(x, attend_with(own_bias, dropout), dropout or _keep)
            x = block.attend_states(x, states, cross_bias, implementation, dropout)
            return block.feed(x, dropout or _keep)

        x = drop(embed(self.embedding, decoder_inputs.ids, dtype))
        x = scan_layers(self.decoder.layers, decode, x, **options)
        return drop(self.decoder.norm(x))

    def prefill(
        self, tokens: Tokens, before: Memory | None = None, needed: jax.Array | None = None
    ) -> tuple[jax.Array, Memory]:
        """Encodes a prompt."""
        keys = tokens.positions
        if before is not None:
            rows = keys.shape[0], before.positions.shape[1]
            keys = jnp.concatenate([jnp.broadcast_to(before.positions, rows), keys], axis=1)
        bias = self.encoder.with_positions(tokens.bias, tokens.positions, keys)
        x, adapts = embed_tokens(self, tokens), tokens.adapts
        layers: list[KeyValue] = []
        for i, block in enumerate(self.encoder.layers):
            blocks = () if before is None else (before.cache.layer(i),)
            attend_layer = functools.partial(attend_after, bias=bias, before=blocks, scale=1.0)
            x, kept = block.attend_self(x, attend_layer, adapts=adapts)
            x = block.feed(x, adapts=adapts)
            layers.append(kept)
        states = self.encoder.norm(x)
        memory = Memory(KVCache.of_layers(layers), tokens.positions, states)
        return states if needed is None else take_slots(states, needed, 1), memory

    def context_kv(self, memory: Memory) -> KVCache:
        """Keys and values of the decoder's cross-attention."""
        cross = [block.cross_attention for block in self.decoder.layers]
        return KVCache.of_layers(
            heads_first(attention.key(memory.states), attention.value(memory.states))
            for attention in cross
        )

    def init_decode(
        self, hidden: jax.Array, position: jax.Array, bias: jax.Array, context: Sequence[KVCache]
    ) -> tuple[jax.Array, DecodeState]:
        """Runs the start token, which predicts the first of the output."""
        config, rows = self.config, hidden.shape[0]
        slots = bias.shape[-1] - sum(cache.num_slots for cache in context)
        shape = rows, config.num_heads, slots, config.head_dim
        cache = KVCache.empty(config.num_decoder_layers, shape, hidden.dtype)
        ids = jnp.full((rows, 1), config.decoder_start_token)
        first = jnp.zeros((1, 1), jnp.int32)  # the decoder's positions are the same in all rows
        return self.decode_step(ids, bias, context, DecodeState(cache, jnp.int32(0), first))

    def decode_step(
        self, ids: jax.Array, bias: jax.Array, context: Sequence[KVCache], state: DecodeState
    ) -> tuple[jax.Array, DecodeState]:
        seen = sum(block.num_slots for block in context)
        cross_bias, own_bias = jnp.split(bias, [seen], axis=-1)
        own_bias = self.decoder.with_positions(own_bias, jnp.zeros((1, 1), jnp.int32), -state.ages[None])
        x = embed(self.embedding, ids)
        layers: list[KeyValue] = []

        def attend_layer(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeyValue]:
            grown = state.cache.write(i, heads_first(k, v), state.slot)
            return attend_cached(q, [as_block(grown)], own_bias, scale=1.0), grown

        for i, block in enumerate(self.decoder.layers):
            x, kept = block.attend_self(x, functools.partial(attend_layer, i))
            x = block.feed(block.attend_context(x, [c.layer(i) for c in context], cross_bias))
            layers.append(kept)
        grown = DecodeState(KVCache.of_layers(layers), state.slot + 1, state.position + 1)
        return self.decoder.norm(x), grown

    def logits(self, hidden: jax.Array) -> jax.Array:
        if self.config.scale_outputs:
            hidden = hidden * self.config.hidden_size**-0.5
        return head_logits(self, hidden)
