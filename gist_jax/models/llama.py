"""LLaMA (arXiv 2302.13971) in Flax NNX. The methods are described in gist_jax.models.model.

Shape letters: B batch, T query length, S key length, P slots before the tokens of a call, D model dim,
F feed-forward dim, N heads, K key/value heads, H head dim, V vocabulary, L layers.
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
from gist_jax.models.config import LlamaConfig
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
    rotary_angles,
    rotate,
)
from gist_jax.models.model import DecodeState, Tokens
from gist_jax.models.stack import make_layers, scan_layers
from gist_jax.sharding import constrain

Angles = tuple[jax.Array, jax.Array]  # see `rotary_angles`


def frequencies(config: LlamaConfig) -> np.ndarray:
    """Frequencies of rotary positions, scaled as the config says: float32 `[H/2]`, in radians."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain = 1 / np.float32(config.rope_theta) ** exponents
    scaled = plain / np.float32(config.rope_factor)
    if config.rope_scaling == "llama3":
        # Between the two limits the share of the plain frequency grows with the number of wavelengths.
        wavelengths = config.rope_original_positions * plain / (2 * np.pi)
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        share = np.clip((wavelengths - low) / (high - low), 0, 1).astype(np.float32)
        return (1 - share) * scaled + share * plain
    return scaled if config.rope_scaling == "linear" else plain


class FeedForward(nnx.Module):
    """The gated feed-forward network, SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        d, f = config.hidden_size, config.intermediate_size
        options: dict[str, Any] = dict(stddev=config.initializer_range, dtype=dtype, rngs=rngs)
        self.gate = Projection((d, f), ("embed", "mlp"), **options)
        self.up = Projection((d, f), ("embed", "mlp"), **options)
        self.down = Projection((f, d), ("mlp", "embed"), **options)

    def __call__(self, x: jax.Array, adapts: jax.Array | None = None) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x, adapts)) * self.up(x, adapts), adapts)


class Block(nnx.Module):
    """A layer: attention, then feed-forward, each on normed hidden states and added to them."""

    def __init__(self, config: LlamaConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        d, n, k, h = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        stddevs = (config.initializer_range,) * 3
        self.attention_norm = RMSNorm(d, config.norm_eps, dtype)
        self.attention = Attention((d, n, k, h), stddevs, dtype, rngs, bias=config.kind == "qwen2")
        self.normalizes_heads = config.kind == "qwen3"
        if self.normalizes_heads:
            self.query_norm = RMSNorm(h, config.norm_eps, dtype)
            self.key_norm = RMSNorm(h, config.norm_eps, dtype)
        self.feed_forward_norm = RMSNorm(d, config.norm_eps, dtype)
        self.feed_forward = FeedForward(config, dtype, rngs)

    def __call__(
        self,
        x: jax.Array,
        angles: Angles,
        attend: Attend,
        adapts: jax.Array | None = None,
        needed: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Hidden states `[B, T, D]` after the layer, and what `attend` keeps.

        Args:
          adapts: bool `[B, T]`, where an adapter acts.
          needed: int `[B, Q]`, the slots whose states are needed, `[B, Q, D]`; None: all.
        """

        def take(x: jax.Array) -> jax.Array:
            return x if needed is None else take_slots(x, needed, 1)

        with jax.named_scope("attention"):
            attention, normed = self.attention, self.attention_norm(x)
            adapts_taken = None if adapts is None else take(adapts)
            q = attention.query(take(normed), adapts_taken)
            k, v = attention.key(normed, adapts), attention.value(normed, adapts)
            if self.normalizes_heads:
                q, k = self.query_norm(q), self.key_norm(k)
            cos, sin = angles
            q = rotate(q, (take(cos), take(sin)))
            attended, kept = attend(q, rotate(k, angles), v)
            x = take(x) + attention.output(attended, adapts_taken)
        with jax.named_scope("feed_forward"):
            x = x + self.feed_forward(self.feed_forward_norm(x), adapts_taken)
        return constrain(x, *HIDDEN), kept


class Llama(nnx.Module):
    """A model of the LLaMA family; `stacked` chooses between scanned and unrolled layers."""

    def __init__(self, config: LlamaConfig, dtype: DTypeLike, stacked: bool, rngs: nnx.Rngs) -> None:
        v, d, stddev = config.vocab_size, config.hidden_size, config.initializer_range
        self.config = config
        self.embedding = normal_param(rngs, (v, d), VOCAB, stddev, dtype)
        make = functools.partial(Block, config, dtype)
        self.layers = make_layers(make, config.num_layers, stacked, rngs)
        self.norm = RMSNorm(d, config.norm_eps, dtype)
        if not config.tie_embeddings:
            self.head = Projection((d, v), VOCAB[::-1], stddev, dtype, rngs)

    def _angles(self, positions: jax.Array) -> Angles:
        return rotary_angles(positions, jnp.asarray(frequencies(self.config)))

    def forward(
        self,
        inputs: Tokens,
        decoder_inputs: None = None,
        *,
        dtype: DTypeLike | None = None,
        remat: str = "none",
        implementation: Implementation = "blocks",
    ) -> jax.Array:
        angles = self._angles(inputs.positions)

        def attend_whole(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            return attend(q, k, v, inputs.bias, causal=True, implementation=implementation), None

        def apply(block: Block, x: jax.Array, _: Dropout | None) -> jax.Array:
            return block(x, angles, attend_whole, inputs.adapts)[0]

        x = embed_tokens(self, inputs, dtype)
        return self.norm(scan_layers(self.layers, apply, x, remat=remat))

    def prefill(
        self, tokens: Tokens, before: Memory | None = None, needed: jax.Array | None = None
    ) -> tuple[jax.Array, Memory]:
        def attend_layer(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeyValue]:
            blocks, bias = () if before is None else (before.cache.layer(i),), tokens.bias
            if needed is not None and q.shape[1] < k.shape[1]:  # the last layer
                bias = take_slots(bias, needed, 2)
            return attend_after(q, k, v, bias, blocks)

        x = embed_tokens(self, tokens)
        hidden, cache = self._unrolled(x, tokens.positions, attend_layer, tokens.adapts, needed)
        return hidden, Memory(cache, tokens.positions, None)

    def context_kv(self, memory: Memory) -> KVCache:
        """What the layers kept of the prompt, as they are the ones to write the output."""
        return memory.cache

    def init_decode(
        self, hidden: jax.Array, position: jax.Array, bias: jax.Array, context: Sequence[KVCache]
    ) -> tuple[jax.Array, DecodeState]:
        """The last token of the prompt predicts the first of the output: nothing is left to run."""
        config, rows = self.config, hidden.shape[0]
        slots = bias.shape[-1] - sum(cache.num_slots for cache in context)
        _, heads, _, head_dim = context[0].layer(0)[0].shape  # on a mesh there may be more heads
        shape = rows, heads, slots, head_dim
        cache = KVCache.empty(config.num_layers, shape, hidden.dtype)
        return hidden, DecodeState(cache, jnp.int32(0), position + 1)

    def decode_step(
        self, ids: jax.Array, bias: jax.Array, context: Sequence[KVCache], state: DecodeState
    ) -> tuple[jax.Array, DecodeState]:
        def attend_layer(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeyValue]:
            grown = state.cache.write(i, heads_first(k, v), state.slot)
            blocks = [*(cache.layer(i) for cache in context), as_block(grown)]
            return attend_cached(q, blocks, bias), grown

        x = embed(self.embedding, ids)
        hidden, cache = self._unrolled(x, state.position, attend_layer)
        return hidden, DecodeState(cache, state.slot + 1, state.position + 1)

    def _unrolled(
        self,
        x: jax.Array,
        positions: jax.Array,
        attend_layer: Callable[..., tuple[jax.Array, KeyValue]],
        adapts: jax.Array | None = None,
        needed: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Final hidden states, and the cache of what `attend_layer(i, q, k, v)` keeps of every layer.

        The last layer computes the states of the slots that are `needed`, int `[B, Q]`, alone.
        """
        angles = self._angles(positions)
        layers: list[KeyValue] = []
        for i, block in enumerate(self.layers):
            is_last = i == self.config.num_layers - 1
            attend = functools.partial(attend_layer, i)
            x, kept = block(x, angles, attend, adapts, needed if is_last else None)
            layers.append(kept)
        return self.norm(x), KVCache.of_layers(layers)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return head_logits(self, hidden)
