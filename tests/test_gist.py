"""The mask rule, against a second statement of it in plain Python and against hand-drawn masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gist_jax import gist

GIST = 9


def draw(mask) -> list[str]:
    """A mask [1, 1, T, S] as lines of text."""
    return ["".join("x" if seen else "." for seen in row) for row in np.asarray(mask)[0, 0]]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("gist", ["x....", "xx...", "xxx..", "..xx.", "..xxx"]),
        ("pos_control", ["x....", "xx...", "xxx..", "xxxx.", "xxxxx"]),
        ("neg_control", ["x....", "xx...", "xxx..", "...x.", "...xx"]),
    ],
)
def test_decoder(condition, expected):
    layout = gist.layout_of(jnp.array([[1, 2, GIST, 3, 4]]), GIST)
    assert draw(gist.attention_mask(layout, condition)) == expected


def test_encoder_and_cross_attention():
    layout = gist.layout_of(jnp.array([[1, GIST, GIST, 3, 4]]), GIST)
    encoder = gist.attention_mask(layout, "gist", bidirectional=True)
    assert draw(encoder) == ["xxx..", "xxx..", "xxx..", ".xxxx", ".xxxx"]
    # The decoder counts as the last span; after the encoder's tokens come its own.
    decoder = gist.following(layout, jnp.array([[1, 1]]))

    def cross_and_own(condition):
        return draw(gist.attention_mask(decoder, condition, before=layout))

    assert cross_and_own("gist") == [".xxxxx.", ".xxxxxx"]
    assert cross_and_own("neg_control") == ["...xxx.", "...xxxx"]
    assert cross_and_own("pos_control") == ["xxxxxx.", "xxxxxxx"]


def test_outputs_of_a_packed_encoder():
    """An output sees its own example, each of which ends in another span."""
    tokens = jnp.array([[1, GIST, 2, 3, 4, GIST, 0]])
    layout = gist.layout_of(tokens, GIST, jnp.array([[1, 1, 1, 2, 3, 3, 0]]))
    outputs = gist.following(layout, jnp.array([[1, 2, 2, 3, 0]]))
    mask = gist.attention_mask(outputs, "gist", before=layout)[..., :7]
    assert draw(mask) == [".xx....", "...x...", "...x...", ".....x.", "......."]
    mask = gist.attention_mask(outputs, "neg_control", before=layout)[..., :7]
    assert draw(mask) == ["..x....", "...x...", "...x...", ".......", "......."]


def test_several_spans_in_a_row():
    layout = gist.layout_of(jnp.array([[1, GIST, 2, GIST, 3]]), GIST)
    assert layout.span.tolist() == [[0, 0, 1, 1, 2]]
    assert draw(gist.attention_mask(layout, "gist")) == ["x....", "xx...", ".xx..", ".xxx.", ".x.xx"]


def test_without_gist_tokens_nothing_is_hidden():
    layout = gist.layout_of(jnp.array([[1, 2, 3]]), GIST)
    for condition in gist.CONDITIONS:
        assert draw(gist.attention_mask(layout, condition)) == ["x..", "xx.", "xxx"]


def test_cached_queries_see_what_full_ones_do():
    tokens = jnp.array([[1, 2, GIST, 3, 4, 5]])
    layout = gist.layout_of(tokens, GIST)
    query = jax.tree.map(lambda x: x[:, 4:], layout)
    for condition in gist.CONDITIONS:
        full = gist.attention_mask(layout, condition)
        cached = gist.visible(query, layout, condition) & gist.causal(2, 6, first_slot=4)
        assert draw(cached) == draw(full[:, :, 4:])


def test_unknown_condition():
    layout = gist.layout_of(jnp.array([[1]]), GIST)
    with pytest.raises(ValueError, match="unknown condition 'gits'"):
        gist.visible(layout, layout, "gits")


@st.composite
def packed_rows(draw):
    """A row of packed examples, padding before and after: all of one length, and so of one program."""
    examples = draw(
        st.lists(st.lists(st.sampled_from([1, 2, GIST]), min_size=1, max_size=6), min_size=1, max_size=4)
    )
    tokens, segment = [], []
    for number, example in enumerate(examples, 1):
        tokens += example
        segment += [number] * len(example)
    room = 27 - len(tokens)
    before = draw(st.integers(0, room))
    pad = ([0] * before, [0] * (room - before))
    return examples, pad[0] + tokens + pad[1], pad[0] + segment + pad[1]


def sees(example: list[int], q: int, k: int, condition: str) -> bool:
    """The rule said once more, by looking at the tokens between k and q."""
    if k > q:
        return False
    # A compressed run ends between them: a gist token that something else follows.
    ends = any(example[i] == GIST and example[i + 1] != GIST for i in range(k, q))
    if condition == "pos_control" or not ends:
        return True
    return condition == "gist" and example[k] == GIST


@given(packed_rows(), st.sampled_from(gist.CONDITIONS))
def test_packed_and_padded_rows(row, condition):
    examples, tokens, segment = row
    segment = jnp.array([segment])
    layout = gist.layout_of(jnp.array([tokens]), GIST, segment)
    mask = np.asarray(gist.attention_mask(layout, condition))[0, 0]
    expected = np.zeros_like(mask)
    start = int(np.argmax(np.asarray(segment)[0] > 0))
    positions = np.zeros(len(tokens), int)
    for example in examples:
        for q in range(len(example)):
            positions[start + q] = q
            for k in range(len(example)):
                expected[start + q, start + k] = sees(example, q, k, condition)
        start += len(example)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(gist.positions_of(segment)[0], positions)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bias_hides_and_never_gives_nan(dtype):
    mask = jnp.array([[True, False], [False, False]])
    bias = gist.mask_to_bias(mask, jnp.dtype(dtype))
    weights = jax.nn.softmax(bias - 1000.0 * jnp.ones((2, 2), dtype), axis=-1)
    np.testing.assert_array_equal(weights, [[1, 0], [0.5, 0.5]])
    assert bias.dtype == dtype
