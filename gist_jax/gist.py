"""Gist masking: what a token may see once its instruction has been compressed.

The rule of "Learning to Compress Prompts with Gist Tokens" (arXiv 2304.08467, section 3): tokens after
the gist tokens see the gist tokens but nothing that came before them. Here it is written once, for
decoders, encoders, cross-attention, cached decoding, packed rows and several spans in a row.

    tokens   Add the word tea . <GIST> Input : a cup <pad>
    segment  1   1   1    1   1 1      1     1 1 1   0       0 is padding, one number per packed example
    span     0   0   0    0   0 0      1     1 1 1   1       counts the compressed runs before a token
    is_gist  .   .   .    .   . x      .     . . .   .

What a `MaskConfig` changes it changes in these three numbers, or in the order of an encoder's gist
tokens; the rule stays.

Shape letters: B batch, T query length, S key length.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

CONDITIONS = ("gist", "pos_control", "neg_control")
PLACEMENTS = AFTER, BEFORE, SPREAD = "after", "before", "spread"


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """How a model's mask and gist tokens differ from the paper's, which are the defaults."""

    # So many of an instruction's last tokens count as gist tokens: later tokens see them too.
    extra: int = 0
    causal_gists: bool = False  # an encoder's gist tokens see none that come later
    # Where gist tokens stand: after an instruction, before it (which is for encoders), or spread over
    # it, the last of them at its end. But for the first, spans are given, not read off the ids.
    placement: str = AFTER

    def __post_init__(self) -> None:
        if type(self.extra) is not int or self.extra < 0:
            raise ValueError(f"extra must be a whole number, at least 0, but is {self.extra!r}")
        if type(self.causal_gists) is not bool:
            raise ValueError(f"causal_gists must be True or False, but is {self.causal_gists!r}")
        if self.placement not in PLACEMENTS:
            raise ValueError(
                f"placement is {self.placement!r} but must be one of {', '.join(PLACEMENTS)}"
            )


PAPER_MASK = MaskConfig()


class Layout(NamedTuple):
    """Where every token of a batch stands. Each array is `[B, T]` (B may be 1: shared by all rows)."""

    segment: jax.Array  # int32, 0 = padding, otherwise the number of the packed example
    span: jax.Array  # int32, the run of tokens compressed together that the token belongs to
    is_gist: jax.Array  # bool


def layout_of(
    tokens: jax.Array,
    gist_token: int,
    segment: jax.Array | None = None,
    span: jax.Array | None = None,
    extra: int = 0,
) -> Layout:
    """Reads the layout off a batch of token ids.

    Args:
      tokens: int `[B, T]`.
      gist_token: id of `<GIST>`. A span ends with the last of a run of gist tokens.
      segment: int `[B, T]`, 0 where padded; None if nothing is padded or packed.
      span: int `[B, T]`, where a span does not end with its gist tokens.
      extra: so many of the last other tokens of a span with gist tokens count as gist tokens.

    Returns:
      The layout of the tokens, arrays of `[B, T]`. Spans are numbered along the row, so those of a
      packed example need not start at 0; only their order within a segment matters.
    """
    if segment is None:
        segment = jnp.ones_like(tokens, dtype=jnp.int32)
    is_gist = (tokens == gist_token) & (segment > 0)
    if span is None:
        after_gist = jnp.pad(is_gist[:, :-1], ((0, 0), (1, 0)))
        span = jnp.cumsum(after_gist & ~is_gist, axis=1, dtype=jnp.int32)
    layout = Layout(segment.astype(jnp.int32), span, is_gist)
    return _with_extra(layout, extra) if extra else layout


def _with_extra(layout: Layout, extra: int) -> Layout:
    """The layout in which the last `extra` other tokens of a span with gist tokens count as such."""
    together = _pairs(layout.segment) & _pairs(layout.span)
    is_gist, length = layout.is_gist[:, None, :], layout.segment.shape[1]
    others_after = jnp.sum(together & ~is_gist & ~causal(length, length)[0], axis=2)
    counts = (layout.segment > 0) & jnp.any(together & is_gist, axis=2) & (others_after < extra)
    return layout._replace(is_gist=layout.is_gist | counts)


def _pairs(x: jax.Array) -> jax.Array:
    """Which tokens of a row have the same number: bool `[B, T, T]` of `[B, T]`."""
    return x[:, :, None] == x[:, None, :]


def without_gists(
    tokens: jax.Array, layout: Layout, space_token: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """The same rows as if no gist token were in them, every other token in its slot.

    Args:
      tokens: int `[B, T]`, of the layout.
      space_token: that of the lone space which T5's prompts have before their gist tokens.

    Returns:
      Tokens and segment, `[B, T]`, both 0 where the gist tokens were, and the space before them.
    """
    hidden = layout.is_gist
    if space_token is not None:
        before_gist = jnp.pad(layout.is_gist[:, 1:], ((0, 0), (0, 1)))
        hidden = hidden | (before_gist & (tokens == space_token))
    return jnp.where(hidden, 0, tokens), jnp.where(hidden, 0, layout.segment)


def positions_of(segment: jax.Array) -> jax.Array:
    """Position of every token within its own segment: `[B, T]` int32 from `[B, T]`, 0 where padded.

    Padding inside of a segment does not count: 1 1 0 1 2 2 -> 0 1 0 2 0 1.
    """
    valid = segment > 0
    counted = valid.astype(jnp.int32)
    index = jnp.arange(segment.shape[1], dtype=jnp.int32)[None]
    # The segment of the last token up to here, and of that before it.
    last = jax.lax.cummax(jnp.where(valid, index, 0), axis=1)
    filled = jnp.take_along_axis(segment, last, axis=1)
    starts = jnp.pad(filled[:, 1:] != filled[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    count = jnp.cumsum(counted, axis=1)
    before = jax.lax.cummax(jnp.where(starts, count - counted, 0), axis=1)
    return jnp.where(valid, count - 1 - before, 0)


def following(layout: Layout, segment: jax.Array) -> Layout:
    """The layout of tokens that follow those of `layout` in the last span of their segment.

    Args:
      layout: `[B, T]`.
      segment: int `[B, S]`, of the tokens that follow: the rest of a prompt, or an output.

    Returns:
      `[B, S]`, none of them gist tokens.
    """
    after = jnp.where(layout.is_gist, layout.span + 1, layout.span)
    same_segment = segment[:, :, None] == layout.segment[:, None, :]
    span = jnp.max(jnp.where(same_segment, after[:, None, :], 0), axis=2, initial=0)
    return Layout(segment.astype(jnp.int32), span, jnp.zeros(segment.shape, bool))


def continued(prefix: Layout, layout: Layout) -> Layout:
    """`layout`, `[B, T]`, renumbered as the continuation of `prefix`, `[B or 1, S]`; one segment."""
    first = following(prefix, jnp.ones_like(prefix.segment[:, :1])).span
    return layout._replace(span=layout.span + first)


def joined(first: Layout, second: Layout) -> Layout:
    """Both layouts one after the other, `[B, S + T]`; a first of batch 1 stands before every row."""
    rows = second.segment.shape[0]
    return Layout(
        *(
            jnp.concatenate([jnp.broadcast_to(a, (rows, a.shape[1])), b], axis=1)
            for a, b in zip(first, second, strict=True)
        )
    )


def visible(query: Layout, key: Layout, condition: str) -> jax.Array:
    """Which keys each query may see under a condition, whatever causality says.

    Args:
      query: layout of the queries, arrays `[B, T]`.
      key: layout of the keys, arrays `[B or 1, S]`. The same as `query` in self-attention; a cache's
        layout in cached decoding; the encoder's in cross-attention.
      condition: "gist", "pos_control" (mask untouched) or "neg_control" (earlier spans hidden).

    Returns:
      bool `[B, 1, T, S]`. The rows of padded queries are all False.

    Raises:
      ValueError: for an unknown condition.
    """
    query = jax.tree.map(lambda x: x[:, None, :, None], query)
    key = jax.tree.map(lambda x: x[:, None, None, :], key)
    same_segment = (query.segment == key.segment) & (query.segment > 0)
    same_span = query.span == key.span
    if condition == "pos_control":
        return same_segment
    if condition == "neg_control":
        return same_segment & same_span
    if condition == "gist":
        return same_segment & (same_span | key.is_gist & (key.span < query.span))
    raise ValueError(f"unknown condition {condition!r}: choose one of {', '.join(CONDITIONS)}")


def causal(num_queries: int, num_keys: int, first_slot: int | jax.Array = 0) -> jax.Array:
    """bool `[1, 1, T, S]`: query t stands in key slot `first_slot + t` and sees no later slot."""
    slots = first_slot + jnp.arange(num_queries)
    return (jnp.arange(num_keys)[None, :] <= slots[:, None])[None, None]


def attention_mask(
    layout: Layout,
    condition: str,
    *,
    before: Layout | None = None,
    bidirectional: bool = False,
    causal_gists: bool = False,
) -> jax.Array:
    """Mask of a whole sequence: which of its own tokens, and of those before it, each token sees.

    Args:
      layout: `[B, T]`; of what stands behind others, see `continued` and `following`.
      before: of cached tokens, or of what an encoder has read, `[B or 1, P]`.
      bidirectional: an encoder's tokens see later ones too.
      causal_gists: but gist tokens see no gist tokens that come later.

    Returns:
      bool `[B, 1, T, P + T]`.
    """
    keys = layout if before is None else joined(before, layout)
    mask = visible(layout, keys, condition)
    length, num_keys = layout.segment.shape[1], keys.segment.shape[1]
    ordered = causal(length, num_keys, num_keys - length)
    if not bidirectional:
        return mask & ordered
    if not causal_gists:
        return mask
    return mask & (ordered | ~(layout.is_gist[:, None, :, None] & keys.is_gist[:, None, None, :]))


def mask_to_bias(mask: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Additive attention bias of a boolean mask: 0 where visible, a large negative number elsewhere.

    The number is finite, so that a row which sees nothing (padding) gives a uniform softmax and no
    NaN, and half the smallest float, so that adding attention logits cannot overflow.
    """
    return jnp.where(mask, 0, jnp.finfo(dtype).min / 2).astype(dtype)
