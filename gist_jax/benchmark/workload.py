"""What is compared: requests to a model, answered with and without a cache.

Without a cache the whole prompt is read every time; with the prompt cache (ordinary prefix caching) and
the gist cache only the input is. All three give the same output: the gist mask hides from the input
whatever of the instruction a prompt cache keeps besides the gist tokens.

Shape letters: B batch, T tokens read a row, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gist_jax.errors import UserError
from gist_jax.inference.decode import first_token, next_token
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.prefill import compress, prefill, run_prompt
from gist_jax.models.cache import KVCache
from gist_jax.models.config import ModelConfig
from gist_jax.models.model import Model
from gist_jax.models.registry import merge
from gist_jax.models.stack import Params

MODES = ("none", "prompt_cache", "gist_cache")


class Workload(NamedTuple):
    """A request to a model: lengths in tokens, and how many are made at a time."""

    instruction: int
    input: int
    output: int
    batch: int
    gist_tokens: int
    one_instruction: bool  # for all rows, so that there is one cache; otherwise each has its own

    def new_tokens(self, mode: str) -> int:
        """Tokens of every row that the model runs over."""
        return self.input + (self.instruction + self.gist_tokens if mode == "none" else 0)

    def cached(self, mode: str) -> int:
        """Tokens of every row that are in the cache."""
        all_of_them = self.instruction + self.gist_tokens
        return {"none": 0, "prompt_cache": all_of_them, "gist_cache": self.gist_tokens}[mode]

    @property
    def caches(self) -> int:
        """How many are made at a time."""
        return 1 if self.one_instruction else self.batch

    def check(self, config: ModelConfig) -> None:
        """Raises a UserError if a length is below 1, but for an instruction of which only gist tokens
        are left, or all together are too long for the model.
        """
        for name in ("input", "output", "batch", "gist_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, but is {getattr(self, name)}")
        continued = 0 if config.is_encoder_decoder else self.output
        if (length := self.new_tokens("none") + continued) > config.max_positions:
            raise UserError(
                f"{length} tokens are needed, but the model has only {config.max_positions} positions "
                "(config.model.max_positions)"
            )


def forward(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    prefix: GistCache | None,
    *,
    config: ModelConfig,
    gist_token: int,
) -> jax.Array:
    """One forward pass as the paper measures it (arXiv 2304.08467, section 6).

    Arguments as of `decode.generate`.

    Returns:
      float32 logits of all tokens of the prompt, `[B, T, V]`; of an encoder-decoder, those of one step
      of its decoder.
    """
    model = merge(params, config)
    settings: dict[str, Any] = dict(condition="gist", gist_token=gist_token)
    if config.is_encoder_decoder:
        prefilled, _ = prefill(model, tokens, segment, prefix, max_new=1, **settings)
        return model.logits(prefilled.hidden)
    return model.logits(run_prompt(model, tokens, segment, prefix, **settings)[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptCache(GistCache):
    """The cache of whole instructions: what ordinary prefix caching keeps.

    Of an encoder-decoder it has the keys and values of cross-attention in place of the encoder's states:
    computing them anew for every output would cost more than encoding the input.
    """

    cross_kv: KVCache | None = None

    def context_kv(self, model: Model) -> KVCache:
        return super().context_kv(model) if self.cross_kv is None else self.cross_kv

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self.cross_kv is None else self.cross_kv.nbytes)


def make_cache(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    *,
    config: ModelConfig,
    gist_token: int,
    mode: str,
    num_gists: int,
) -> GistCache:
    """Makes the cache of a mode, of a batch of instructions with their gist tokens; see `compress`."""
    if mode == "gist_cache":
        settings: dict[str, Any] = dict(config=config, gist_token=gist_token, num_kept=num_gists)
        return compress(params, tokens, segment, **settings)
    model = merge(params, config)
    _, memory, layout = run_prompt(model, tokens, segment, None, condition="gist", gist_token=gist_token)
    cross_kv = None
    if config.is_encoder_decoder:
        cross_kv, memory = model.context_kv(memory), dataclasses.replace(memory, states=None)
    offset = jnp.sum(segment > 0, axis=1, dtype=jnp.int32)
    return PromptCache(memory, layout, offset, cross_kv=cross_kv)


# Those that are counted and measured: one per use of the model.
PROGRAMS: dict[str, Callable] = {
    "forward": forward,
    "first_token": first_token,
    "next_token": next_token,
    "make_cache": make_cache,
}
