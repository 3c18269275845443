"""What a model writes after rows of token ids, as one padded batch."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gist_jax.inference.buckets import bucket, padded_rows, padded_spans
from gist_jax.inference.decode import generate
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.sampling import Sampling
from gist_jax.sharding import in_mesh, named_sharding, num_shards

if TYPE_CHECKING:
    from gist_jax.inference.language_model import LanguageModel


def generate_ids(
    lm: "LanguageModel",
    rows: Sequence[Sequence[int]],
    gists: GistCache | None,
    max_new_tokens: int,
    sampling: Sampling | None,
    seed: int,
) -> np.ndarray:
    """The token ids, int32 `[len(rows), max_new_tokens]`, that continue rows of token ids."""
    tokens: np.ndarray | jax.Array
    segment: np.ndarray | jax.Array
    tokens, segment = padded_rows(rows, lm.tokenizer.pad_id)
    span: np.ndarray | jax.Array | None = padded_spans(lm.template.gives_spans, rows, tokens.shape)
    if lm.mesh is not None:
        placed = functools.partial(_on_mesh, lm.mesh)
        tokens, segment, span = jax.tree.map(placed, (tokens, segment, span))
    if gists is not None:
        gists = gists.bare(lm.dtype, lm.mesh)
        if 1 < len(gists) != len(tokens):  # rows of padding need a cache too: any will do
            gists = gists[np.arange(len(tokens)) % len(gists)]
    with in_mesh(lm.mesh):
        output = generate(
            lm.params,
            tokens,
            segment,
            gists,
            np.int32(max_new_tokens),
            np.int32(lm.tokenizer.eos_id),
            np.uint32(seed % 2**32),
            sampling,
            config=lm.config,
            condition=lm.condition,
            gist_token=lm.tokenizer.gist_id,
            max_new=bucket(max_new_tokens, smallest=16),
            # Texts without gist tokens run the programs of the base.
            adapter=lm.adapter if any(lm.tokenizer.gist_id in row for row in rows) else None,
            mask=lm.mask,
            span=span,
        )
    if not output.is_fully_addressable:  # other processes have some of the rows
        output = multihost_utils.process_allgather(output, tiled=True)
    return np.asarray(output)[: len(rows), :max_new_tokens]


def _on_mesh(mesh: Mesh, x: np.ndarray) -> jax.Array:
    """Rows split over the mesh, after rows of zeros that make them divide evenly."""
    x = np.pad(x, ((0, -len(x) % num_shards(mesh, "batch")), (0, 0)))
    return jax.device_put(x, named_sharding(mesh, ("batch", "length"), x.shape))
