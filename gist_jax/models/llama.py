"""LLaMA (arXiv 2302.13971) in Flax NNX. The methods are described in gist_jax.models.model.

Shape letters: B batch, T query length, S key length, P slots before the tokens of a call, D model dim,
F feed-forward dim, N heads, K key/value heads, H head dim, V vocabulary, L layers.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gist_jax.models.axes import constrain
from gist_jax.models.cache import KeyValue, KVCache, Memory, empty
from gist_jax.models.config import LlamaConfig
from gist_jax.models.layers import (
    HIDDEN,
    VOCAB,
    Attention,
    Projection,
    RMSNorm,
    attend_past,
    embed,
    head_logits,
    normal_param,
    rotary_angles,
    rotate,
)
from gist_jax.models.model import Begun, Tokens
from gist_jax.models.stack import make_layers, scan_layers


def frequencies(config: LlamaConfig) -> np.ndarray:
    """Of rotary positions, float32 `[H/2]`, in radians per position, scaled as the config says."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain = 1 / np.float32(config.rope_theta) ** exponents
    scaled = plain / np.float32(config.rope_factor)
    if config.rope_scaling == "llama3":
        # Between the two limits the share of the plain frequency grows with the number of turns.
        turns = config.rope_original_positions * plain / (2 * np.pi)
        low, high = config.rope_low_turns, config.rope_high_turns
        share = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
        return (1 - share) * scaled + share * plain
    return scaled if config.rope_scaling == "linear" else plain


class FeedForward(nnx.Module):
    def __init__(self, config: LlamaConfig, dtype, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        options = dict(stddev=config.initializer_range, dtype=dtype, rngs=rngs)
        self.gate = Projection("btd,df->btf", (d, f), ("embed", "mlp"), **options)
        self.up = Projection("btd,df->btf", (d, f), ("embed", "mlp"), **options)
        self.down = Projection("btf,fd->btd", (f, d), ("mlp", "embed"), **options)

    def __call__(self, x):
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    def __init__(self, config: LlamaConfig, dtype, rngs: nnx.Rngs):
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

    def __call__(self, x, angles, bias, before=(), past=None, slot=None, implementation=None):
        q, k, v = self.attention(self.attention_norm(x))
        if self.normalizes_heads:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = rotate(q, angles), rotate(k, angles)
        attended, new = attend_past(q, k, v, bias, before, past, slot, implementation=implementation)
        x = x + self.attention.output(attended)
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return constrain(x, *HIDDEN), new


class Llama(nnx.Module):
    """A model of the LLaMA family; `stacked` chooses between scanned and separate layers."""

    def __init__(self, config: LlamaConfig, dtype, stacked: bool, rngs: nnx.Rngs):
        v, d, stddev = config.vocab_size, config.hidden_size, config.initializer_range
        self.config = config
        self.embedding = normal_param(rngs, (v, d), VOCAB, stddev, dtype)
        make = functools.partial(Block, config, dtype)
        self.layers = make_layers(make, config.num_layers, stacked, rngs)
        self.norm = RMSNorm(d, config.norm_eps, dtype)
        if not config.tie_embeddings:
            self.head = Projection("btd,dv->btv", (d, v), VOCAB[::-1], stddev, dtype, rngs)

    def _angles(self, positions):
        return rotary_angles(positions, jnp.asarray(frequencies(self.config)))

    def forward(
        self,
        read: Tokens,
        *,
        dtype=None,
        remat: str = "none",
        implementation: str | None = None,
    ) -> jax.Array:
        angles = self._angles(read.positions)

        def apply(block: Block, x, _):
            return block(x, angles, read.bias, implementation=implementation)[0]

        x = embed(self.embedding, read.ids, dtype)
        return self.norm(scan_layers(self.layers, apply, x, remat=remat))

    def read(self, tokens: Tokens, before: Memory | None = None) -> tuple[jax.Array, Memory]:
        hidden, cache = self._run(tokens, () if before is None else (before.cache,))
        return hidden, Memory(cache, tokens.positions, None)

    def context(self, memory: Memory) -> KVCache:
        """What was read is seen by the layers that read it."""
        return memory.cache

    def begin(
        self, hidden: jax.Array, position: jax.Array, bias: jax.Array, context: Sequence[KVCache]
    ) -> Begun:
        """The last token of the prompt predicts the first of the output: nothing is left to run."""
        config, rows = self.config, hidden.shape[0]
        slots = bias.shape[-1] - sum(cache.num_slots for cache in context)
        shape = rows, config.num_kv_heads, slots, config.head_dim
        return Begun(hidden, empty(config.num_layers, shape, hidden.dtype), 0, position + 1)

    def write(
        self, tokens: Tokens, context: Sequence[KVCache], cache: KVCache, slot: int | jax.Array
    ) -> tuple[jax.Array, KVCache]:
        return self._run(tokens, context, cache, slot)

    def _run(self, tokens: Tokens, context: Sequence[KVCache], cache: KVCache | None = None, slot=None):
        x, angles = embed(self.embedding, tokens.ids), self._angles(tokens.positions)
        key_values: list[KeyValue] = []
        for i, block in enumerate(self.layers):
            past = None if cache is None else cache.layer(i)
            before = [cached.layer(i) for cached in context]
            x, key_value = block(x, angles, tokens.bias, before, past, slot)
            key_values.append(key_value)
        return self.norm(x), KVCache.of_layers(key_values)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return head_logits(self, hidden)
