"""What every family of models can do, described once.

A model reads tokens (the prompt) and writes tokens (the output). A decoder-only model does both with
the same layers: what it writes goes on where it has read. An encoder-decoder reads with its encoder
and writes with its decoder, whose cross-attention looks at what was read.

Shape letters: B batch, T tokens of a call, P slots before them, D model dim, V vocabulary, K key/value
heads, H head dim.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax

from gist_jax.models.cache import KVCache, Memory
from gist_jax.models.config import ModelConfig
from gist_jax.models.dropout import Dropout


class Tokens(NamedTuple):
    """Tokens with all that attention needs to know of them."""

    ids: jax.Array  # int [B, T], or embeddings in their place, floating [B, T, D]
    positions: jax.Array  # int [B, T]; [1, T] for all rows
    bias: jax.Array  # additive attention bias [B, 1, T, P + T], see gist_jax.gist


class Begun(NamedTuple):
    """Where writing begins."""

    hidden: jax.Array  # [B, 1, D], which predicts the first token of the output
    cache: KVCache  # of the written tokens: [B, K, slots, H], or [K, slots, H] of one row
    slot: int  # of the first output token, in that cache
    position: jax.Array  # int [B, 1], of the first output token; [1, 1] for all rows


class Model(Protocol):
    """A model with its parameters, from `family.merge`."""

    config: ModelConfig
    embedding: jax.Array  # [V, D]

    def forward(
        self,
        read: Tokens,
        written: Tokens | None = None,
        *,
        dtype=None,
        remat: str = "none",
        implementation: str | None = None,
        dropout: Dropout | None = None,
    ) -> jax.Array:
        """Final hidden states of whole sequences, `[B, T, D]`, with stacked layers.

        Args:
          written: for an encoder-decoder, whose hidden states are those of its decoder. Its bias is
            over what is read, followed by what is written. A decoder-only model takes none.
          dtype: of the computation; that of the parameters by default.
          remat: name in `stack.REMAT_POLICIES`.
          implementation: of attention, see `layers.attend`.
          dropout: for models that have it; others do not take it.
        """
        ...

    def read(self, tokens: Tokens, before: Memory | None = None) -> tuple[jax.Array, Memory]:
        """Reads tokens, with layers apart; in the bias, P are the slots of `before`.

        Args:
          before: what earlier tokens left, of batch B, or of batch 1 for all rows.

        Returns:
          Final hidden states `[B, T, D]`, and what later tokens may look at.
        """
        ...

    def context(self, memory: Memory) -> KVCache:
        """The keys and values that written tokens see of what was read, computed once."""
        ...

    def begin(
        self, hidden: jax.Array, position: jax.Array, bias: jax.Array, context: Sequence[KVCache]
    ) -> Begun:
        """Prepares to write.

        Args:
          hidden: `[B, 1, D]`, of the last token read.
          position: int `[B, 1]`, of that token.
          bias: `[B, 1, 1, P + slots]`, of whatever stands in the first slot. P are those of `context`.
          context: in the order of the bias; each of batch B or 1.
        """
        ...

    def write(
        self,
        tokens: Tokens,
        context: Sequence[KVCache],
        cache: KVCache,
        slot: int | jax.Array,
    ) -> tuple[jax.Array, KVCache]:
        """Hidden states `[B, T, D]` of tokens that are written from `slot` on, and the grown cache.

        Their bias is `[B, 1, T, P + slots]`. P are those of `context`, each of batch B or 1.
        """
        ...

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores of the next token: float32 `[B, T, V]`."""
        ...
