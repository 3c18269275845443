"""What users give to a model, checked: texts, and gist caches."""

from collections.abc import Sequence

from gist_jax.data.fields import is_unicode
from gist_jax.errors import UserError
from gist_jax.inference.gist_cache import GistCache, Origin
from gist_jax.models.config import ModelConfig


def check_cache(
    gists: GistCache, origin: Origin, config: ModelConfig, num_inputs: int, kind: str = "input"
) -> None:
    """Raises a UserError unless a model's gist cache serves so many inputs.

    Args:
      origin: of the model. The adapter that made the cache need not be there.
      kind: what the texts are that are read after the cache.
    """
    made = gists.origin
    if made is None or (made.base, made.tokenizer) != (origin.base, origin.tokenizer):
        raise UserError("the gist cache was made by another model or tokenizer")
    if made.template != origin.template:
        raise UserError(
            f"the gist cache is of a {made.template} prompt, but this model's are written "
            f"as {origin.template}"
        )
    if problem := _misfit(gists, config):
        raise UserError(f"the gist cache does not fit the model: {problem}")
    if len(gists) not in (1, num_inputs):
        raise UserError(
            f"there are {len(gists)} gist caches for {num_inputs} {kind}s: give one, or one for each"
        )


def _misfit(gists: GistCache, config: ModelConfig) -> str | None:
    """Describes how a cache differs from those that a model makes; None if it does not."""
    cache, states = gists.memory.cache, gists.memory.states
    if len(cache.keys) != config.num_layers:
        return f"it has {len(cache.keys)} layers, not {config.num_layers}"
    heads, _, size = cache.keys[0].shape[1:]
    if (heads, size) != (config.num_kv_heads, config.head_dim):
        return (
            f"it has {heads} heads of {size} dimensions, not {config.num_kv_heads} of {config.head_dim}"
        )
    if (states is not None) != config.is_encoder_decoder:
        return f"it has {'no' if states is None else 'an'} encoder's states"
    if states is not None and states.shape[2] != config.hidden_size:
        return f"its states have {states.shape[2]} dimensions, not {config.hidden_size}"
    return None


def check_positions(length: int, config: ModelConfig) -> None:
    """Raises a UserError if a model has not so many positions."""
    if length > config.max_positions:
        raise UserError(
            f"{length} tokens are needed, but the model has only {config.max_positions} positions"
        )


def as_texts(kind: str, texts: str | Sequence[str]) -> list[str]:
    """The texts that a user gave, or the one.

    Raises:
      UserError: if there is none, or one is not Unicode.
    """
    if isinstance(texts, str):
        texts = [texts]
    if len(texts) == 0:
        raise UserError(f"there is no {kind}")
    for text in texts:
        if not is_unicode(text):
            raise UserError(f"the {kind} {text!r} is not valid Unicode")
    return list(texts)


def one_each(kind: str, texts: list[str], count: int) -> list[str]:
    """A text for every input, of one for each or one for all."""
    if len(texts) not in (1, count):
        raise UserError(f"there are {len(texts)} {kind}s for {count} inputs: give one, or one for each")
    return texts * count if len(texts) == 1 else texts
