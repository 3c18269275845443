"""What is compared, and the programs that are measured: one per use of the model.

Without a cache the whole prompt is read every time; with the prompt cache (ordinary prefix caching) and
the gist cache only the input is. All three give the same output: the gist mask hides from the input
whatever of the instruction a prompt cache keeps besides the gist tokens.

Shape letters: B batch, T tokens read a row, V vocabulary.
"""

import dataclasses
from typing import NamedTuple

import jax

from gist_jax.errors import UserError
from gist_jax.inference.compress import compress, read_instructions
from gist_jax.inference.generate import Prompt, prefill, read, write_token
from gist_jax.inference.gist_cache import GistCache
from gist_jax.models.cache import KVCache
from gist_jax.models.config import ModelConfig
from gist_jax.models.family import merge
from gist_jax.models.stack import Params

MODES = ("none", "prompt_cache", "gist_cache")


class Point(NamedTuple):
    """A request to a model: lengths in tokens, and how many are made at a time."""

    instruction: int
    input: int
    output: int
    batch: int
    gist_tokens: int
    one_instruction: bool  # for all rows, so that there is one cache; otherwise each has its own

    def read(self, mode: str) -> int:
        """Tokens of every row that are read."""
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
        written = self.output if config.decoder_start_token is None else 0
        if (length := self.read("none") + written) > config.max_positions:
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
    """One forward pass as the paper measures it (arXiv 2304.08467, section 6): of all tokens that are
    read, float32 scores `[B, T, V]`; of an encoder-decoder, those of one step of its decoder.

    Arguments as of `generate`.
    """
    model = merge(params, config)
    batch = dict(tokens=tokens, segment=segment, prefix=prefix)
    mask = dict(condition="gist", gist_token=gist_token)
    if config.decoder_start_token is None:
        return model.logits(read(model, **batch, **mask).hidden)
    return model.logits(prefill(model, **batch, **mask, max_new=1).begun.hidden)


def first_token(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    prefix: GistCache | None,
    *,
    config: ModelConfig,
    condition: str,
    gist_token: int,
    max_new: int,
) -> tuple[Prompt, jax.Array]:
    """What `generate` does up to the first token of every output, int `[B]`."""
    model = merge(params, config)
    settings = dict(condition=condition, gist_token=gist_token, max_new=max_new)
    prompt = prefill(model, tokens, segment, prefix, **settings)
    return prompt, model.logits(prompt.begun.hidden).argmax(-1)[:, 0]


def apart(prompt: Prompt) -> tuple[Prompt, KVCache]:
    """The prompt and its own cache, which `next_token` takes apart because it is donated."""
    return prompt._replace(begun=prompt.begun._replace(cache=None)), prompt.begun.cache


def next_token(
    params: Params,
    prompt: Prompt,
    cache: KVCache,
    token: jax.Array,
    number: int | jax.Array,
    *,
    config: ModelConfig,
) -> tuple[KVCache, jax.Array]:
    """A step of `generate`: writes a token, and gives the next one. Donate the cache.

    Args:
      prompt: without its own cache, see `apart`.
      cache: its own, or what the last step returned.
      token, number: of `write_token`.
    """
    model = merge(params, config)
    hidden, cache = write_token(model, prompt, cache, token, number)
    return cache, model.logits(hidden).argmax(-1)[:, 0]


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
    """The cache of a mode, of a batch of instructions with their gist tokens; see `compress`.

    That of whole prompts holds, of an encoder-decoder, the keys and values of cross-attention in place
    of the encoder's states: computing them anew for every output would cost more than reading the input.
    """
    if mode == "gist_cache":
        settings = dict(config=config, gist_token=gist_token, num_kept=num_gists)
        return GistCache(*compress(params, tokens, segment, **settings), fingerprint="")
    model = merge(params, config)
    memory, layout, offset = read_instructions(model, tokens, segment, gist_token)
    if memory.states is not None:
        memory = dataclasses.replace(memory, states=None, crossing=model.context(memory))
    return GistCache(memory, layout, offset, fingerprint="")
