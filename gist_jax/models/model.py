"""What every family of models can do, described once.

A prompt is prefilled (an encoder-decoder encodes it), then the output is decoded token by token. A
decoder-only model does both with the same layers: the output continues the prompt. An encoder-decoder
reads the prompt with its encoder and writes with its decoder, whose cross-attention looks at what the
encoder left.

Shape letters: B batch, T tokens of a call, P slots before them, D model dim, V vocabulary, K key/value
heads, H head dim.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gist_jax.models.attention import Implementation
from gist_jax.models.cache import KVCache, Memory
from gist_jax.models.config import ModelConfig
from gist_jax.models.dropout import Dropout


class Tokens(NamedTuple):
    """Tokens with all that attention needs to know of them."""

    ids: jax.Array  # int [B, T], or embeddings in their place, floating [B, T, D]
    positions: jax.Array  # int [B, T]; [1, T] for all rows
    bias: jax.Array  # additive attention bias [B, 1, T, P + T], see gist_jax.gist
    adapts: jax.Array | None = None  # bool [B, T], where an adapter acts: at gist tokens


class DecodeState(NamedTuple):
    """What a decode step changes: the cache of the output, and where the next token goes."""

    cache: KVCache  # of the output's tokens, each layer [B, K, slots, H]; donated from step to step
    slot: jax.Array  # int32 scalar: slot of the next token in that cache
    position: jax.Array  # int32 [B, 1]: position of the next token; [1, 1] for all rows

    @property
    def ages(self) -> jax.Array:
        """How many tokens before the next one each slot was written, int32 `[slots]`; 0 is its own.

        Slots may be written round and round: the oldest token makes room for the newest.
        """
        slots = self.cache.num_slots
        return (self.slot - jnp.arange(slots)) % slots


class Model(Protocol):
    """A model with its parameters, from `registry.merge`."""

    config: ModelConfig
    embedding: jax.Array  # [V, D]

    def forward(
        self,
        inputs: Tokens,
        decoder_inputs: Tokens | None = None,
        *,
        dtype: Any = None,
        remat: str = "none",
        implementation: Implementation = "blocks",
        dropout: Dropout | None = None,
    ) -> jax.Array:
        """Runs whole sequences through stacked layers, for training.

        Args:
          decoder_inputs: for an encoder-decoder, whose hidden states are those of its decoder. Its bias
            is over the inputs, followed by the decoder's own. A decoder-only model takes none.
          dtype: of the computation; that of the parameters by default.
          remat: name in `stack.REMAT_POLICIES`.
          implementation: of attention, see `attention.attend`.
          dropout: for models that have it; others do not take it.

        Returns:
          Final hidden states `[B, T, D]`.
        """
        ...

    def prefill(
        self, tokens: Tokens, before: Memory | None = None, needed: jax.Array | None = None
    ) -> tuple[jax.Array, Memory]:
        """Runs a prompt through unrolled layers; in the bias, P are the slots of `before`.

        Args:
          before: what earlier tokens left, of batch B, or of batch 1 for all rows.
          needed: int `[B, Q]`, the slots whose hidden states are needed, so that a decoder's last layer
            computes no others; None: all.

        Returns:
          Final hidden states `[B, T or Q, D]`, and what later tokens may look at.
        """
        ...

    def context_kv(self, memory: Memory) -> KVCache:
        """The keys and values that the output's tokens see of a prompt, computed once."""
        ...

    def init_decode(
        self, hidden: jax.Array, position: jax.Array, bias: jax.Array, context: Sequence[KVCache]
    ) -> tuple[jax.Array, DecodeState]:
        """Prepares decoding.

        Args:
          hidden: `[B, 1, D]`, of the prompt's last token.
          position: int `[B, 1]`, of that token.
          bias: `[B, 1, 1, P + slots]`, of whatever stands in the first slot. P are those of `context`.
          context: in the order of the bias; each of batch B or 1.

        Returns:
          Hidden states `[B, 1, D]` that predict the first token of the output, and the state to decode
          from.
        """
        ...

    def decode_step(
        self, ids: jax.Array, bias: jax.Array, context: Sequence[KVCache], state: DecodeState
    ) -> tuple[jax.Array, DecodeState]:
        """Runs one token of every output, int `[B, 1]`, through the model.

        Args:
          bias: `[B, 1, 1, P + slots]`. P are those of `context`, each of batch B or 1.

        Returns:
          Hidden states `[B, 1, D]` that predict the next token, and the state after this one.
        """
        ...

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits of the next token: float32 `[B, T, V]`."""
        ...
