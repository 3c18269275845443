"""Texts that are read after gist caches, or after nothing: instructions and, of an encoder, inputs."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from gist_jax.errors import UserError
from gist_jax.inference.buckets import padded_rows, padded_spans
from gist_jax.inference.checks import check_cache, check_positions
from gist_jax.inference.gist_cache import THEN, GistCache, Origin
from gist_jax.inference.prefill import compress, encode_after
from gist_jax.sharding import in_mesh

if TYPE_CHECKING:
    from gist_jax.inference.language_model import LanguageModel


def compressed(
    lm: "LanguageModel", texts: Sequence[str], origin: Origin, after: GistCache | None
) -> GistCache:
    """The gist caches of instructions, each with the number of gist tokens that the model has.

    With `after` row i holds what it is to hold of a prompt that goes on, here of two spans:

        tokens   <s> Instruction: A <GIST> Instruction: B <GIST>
        kept                        x                     x

    Args:
      origin: of the model.

    Raises:
      UserError: see `LanguageModel.compress`.
    """
    if lm.condition != "gist":
        raise UserError(
            f"this model was trained as {lm.condition}, so its gist tokens hold no instruction"
        )
    if after is not None:
        check_cache(after, origin, lm.config, len(texts), "instruction")
        if after.origin is None or after.origin.adapter != origin.adapter:
            raise UserError(
                "another adapter made the gist cache, or none: continue it with the model that made it"
            )
    rows = [lm.template.instruction_ids(text, continues=after is not None) for text in texts]
    before = np.zeros(1, int) if after is None else np.asarray(after.offset)
    check_positions(int(np.max(before + [len(row) for row in rows])), lm.config)
    tokens, segment = padded_rows(rows, lm.tokenizer.pad_id)
    prefix = None if after is None else after.bare(lm.dtype, lm.mesh)
    if prefix is not None and 1 < len(prefix) != len(tokens):  # rows of padding need one too: any
        prefix = prefix[np.arange(len(tokens)) % len(prefix)]
    with in_mesh(lm.mesh):
        gists = compress(
            lm.params,
            tokens,
            segment,
            config=lm.config,
            gist_token=lm.tokenizer.gist_id,
            num_kept=lm.num_gist_tokens + lm.mask.extra,
            adapter=lm.adapter,
            prefix=prefix,
            mask=lm.mask,
            span=padded_spans(lm.template.gives_spans, rows, tokens.shape),
        )
    if lm.mesh is not None:  # so that any other model can use them
        gists = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), gists)
    gists = gists[: len(rows)]
    return dataclasses.replace(gists, origin=origin, instructions=_all_texts(texts, after))


def _all_texts(texts: Sequence[str], after: GistCache | None) -> tuple[str, ...]:
    """What every row was made of; nothing is known of one that goes on from a cache without texts."""
    if after is None:
        return tuple(texts)
    if not after.instructions:
        return ()
    first = after.instructions * (len(texts) if len(after) == 1 else 1)
    return tuple(a + THEN + b for a, b in zip(first, texts, strict=True))


def encoded_after(
    lm: "LanguageModel", gists: GistCache, rows: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """What an encoder leaves of gist caches and rows of ids; see `LanguageModel.encode_inputs`."""
    gists = gists.bare(lm.dtype, lm.mesh)
    gists = gists[np.arange(len(rows)) % len(gists)]
    tokens, segment = (x[: len(rows)] for x in padded_rows(rows, lm.tokenizer.pad_id))
    settings: dict[str, Any] = dict(config=lm.config, gist_token=lm.tokenizer.gist_id)
    with in_mesh(lm.mesh):
        states = encode_after(lm.params, tokens, segment, gists, **settings)
    joined = np.concatenate([np.asarray(gists.memory.states), np.asarray(states)], axis=1)
    mask = np.concatenate([np.asarray(gists.layout.segment), segment], axis=1)
    return joined.astype(np.float32), mask.astype(np.int32)
