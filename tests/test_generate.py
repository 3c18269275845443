"""Generation from gist caches equals generation from whole prompts, whatever stands beside a row."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gist_jax import gist
from gist_jax.inference.buckets import bucket
from gist_jax.inference.decode import generate
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.prefill import compress
from gist_jax.inference.sampling import Sampling, sample
from gist_jax.models.model import Tokens
from gist_jax.models.registry import merge
from gist_jax.models.stack import unstacked

EOS, GIST = 2, 40
ROWS, MAX_INSTRUCTION, MAX_GIST, MAX_INPUT, NEW = 8, 60, 10, 8, 8

token = st.integers(3, GIST - 1)
row = st.tuples(
    st.lists(token, min_size=1, max_size=MAX_INSTRUCTION),
    st.integers(1, MAX_GIST),
    st.lists(token, min_size=1, max_size=MAX_INPUT),
)


@pytest.fixture(scope="module")
def model(tiny):
    """Configuration, and parameters with unrolled layers."""
    return tiny[0], unstacked(tiny[1])


def arrays(rows, num_rows, length, left=False):
    """Ragged rows padded to one shape, so that every example of a test is one compilation."""
    tokens, segment = np.zeros((num_rows, length), np.int32), np.zeros((num_rows, length), np.int32)
    for i, ids in enumerate(rows):
        place = slice(length - len(ids), length) if left else slice(0, len(ids))
        tokens[i, place], segment[i, place] = ids, 1
    return tokens, segment


def run(model, tokens, segment, prefix=None, condition="gist", seed=0, sampling=None, limit=NEW):
    config, params = model
    numbers = np.int32(limit), np.int32(EOS), np.int32(seed)
    shape = dict(config=config, condition=condition, gist_token=GIST, max_new=NEW)
    return np.asarray(generate(params, tokens, segment, prefix, *numbers, sampling, **shape))


def compressed(model, rows, num_rows, left=False) -> GistCache:
    config, params = model
    tokens, segment = arrays(rows, num_rows, MAX_INSTRUCTION + MAX_GIST, left)
    return compress(params, tokens, segment, config=config, gist_token=GIST, num_kept=MAX_GIST)


def one_by_one(tiny, prompts, outputs, condition="gist"):
    """The tokens a packed row of prompts and their outputs predicts: no cache, one full forward.

    Its layout is made here, not by `layout_of`, since a random model may well write a gist token.
    """
    config, params = tiny
    inputs = {name: [] for name in ("tokens", "segment", "span", "is_gist")}
    decoder_inputs = {name: [] for name in inputs}
    starts = []
    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True), 1):
        last = len(prompt) - 1 - prompt[::-1].index(GIST)
        span = [0] * (last + 1) + [1] * (len(prompt) - last - 1)
        extend(inputs, prompt, number, span, [t == GIST for t in prompt])
        if config.is_encoder_decoder:
            starts.append(len(decoder_inputs["tokens"]))
            ids, after = [config.decoder_start_token, *output], decoder_inputs
        else:
            starts.append(len(inputs["tokens"]) - 1)
            ids, after = output, inputs
        extend(after, ids, number, [1] * len(ids), [False] * len(ids))
    length = ROWS * (MAX_INSTRUCTION + MAX_GIST + MAX_INPUT + NEW)
    ids, layout = padded(inputs, length)
    mask = gist.attention_mask(layout, condition, bidirectional=config.is_encoder_decoder)
    sequences = [Tokens(ids, gist.positions_of(layout.segment), gist.mask_to_bias(mask))]
    if config.is_encoder_decoder:
        ids, after = padded(decoder_inputs, ROWS * (NEW + 1))
        mask = gist.attention_mask(after, condition, before=layout)
        sequences.append(Tokens(ids, gist.positions_of(after.segment), gist.mask_to_bias(mask)))
    best = np.asarray(packed_forward(params, config, *sequences))[0]
    return [best[start : start + NEW] for start in starts]


def extend(sequence, tokens, number, span, is_gist) -> None:
    sequence["tokens"] += tokens
    sequence["segment"] += [number] * len(tokens)
    sequence["span"] += span
    sequence["is_gist"] += is_gist


def padded(sequence, length):
    """Ids `[1, length]`, and their layout."""
    tokens, segment, span, is_gist = (
        jnp.asarray(np.pad(np.asarray(x, np.int32), (0, length - len(x)))[None])
        for x in sequence.values()
    )
    return tokens, gist.Layout(segment, span, is_gist.astype(bool))


@functools.partial(jax.jit, static_argnums=1)
def packed_forward(params, config, *sequences):
    model = merge(params, config)
    return jnp.argmax(model.logits(model.forward(*sequences)), axis=-1)


def until_end(output) -> list[int]:
    output = [int(t) for t in output]
    return output[: output.index(EOS) + 1] if EOS in output else output


@settings(max_examples=10)
@given(st.lists(row, min_size=1, max_size=ROWS), st.booleans())
@example([([5], 1, [6])], False)
@example([([5] * MAX_INSTRUCTION, MAX_GIST, [6] * MAX_INPUT)] * ROWS, True)
def test_cache_equals_whole_prompt_and_row_equals_row_alone(tiny, model, rows, left):
    heads = [instruction + [GIST] * k for instruction, k, _ in rows]
    inputs = [input_ for _, _, input_ in rows]
    prompts = [head + input_ for head, input_ in zip(heads, inputs, strict=True)]
    whole_length = MAX_INSTRUCTION + MAX_GIST + MAX_INPUT

    whole = run(model, *arrays(prompts, ROWS, whole_length, left))
    gists = compressed(model, heads, ROWS, left)
    kept = np.asarray(gists.layout.segment).sum(axis=1)
    assert list(kept) == [k for _, k, _ in rows] + [0] * (ROWS - len(rows))
    cached = run(model, *arrays(inputs, ROWS, MAX_INPUT, left), gists)
    np.testing.assert_array_equal(cached[: len(rows)], whole[: len(rows)])

    outputs = [until_end(output) for output in cached[: len(rows)]]
    expected = one_by_one(tiny, prompts, outputs)
    for output, best in zip(outputs, expected, strict=True):
        assert output == list(best[: len(output)])

    for i in range(len(rows)):
        alone = compressed(model, heads[i : i + 1], 1, left)
        single = run(model, *arrays(inputs[i : i + 1], 1, MAX_INPUT, left), alone)
        np.testing.assert_array_equal(single[0], cached[i])


@pytest.mark.parametrize("condition", gist.CONDITIONS)
def test_whole_prompts_under_every_condition(tiny, model, condition):
    rng = np.random.default_rng(0)
    prompts = [[*rng.integers(3, GIST, n), GIST, GIST, *rng.integers(3, GIST, 5)] for n in (3, 20, 41)]
    prompts = [[int(t) for t in prompt] for prompt in prompts]
    outputs = run(model, *arrays(prompts, 3, 64), condition=condition)
    outputs = [until_end(output) for output in outputs]
    for output, best in zip(outputs, one_by_one(tiny, prompts, outputs, condition), strict=True):
        assert output == list(best[: len(output)])


def test_one_cache_for_many_inputs(model):
    head = [5, 9, 30, 12, GIST, GIST]
    inputs = [[7, 8, 9], [11], [20, 21, 22, 23, 24]]
    gists = compressed(model, [head], 1)
    shared = run(model, *arrays(inputs, 3, MAX_INPUT), gists)
    repeated = run(model, *arrays(inputs, 3, MAX_INPUT), gists[[0, 0, 0]])
    np.testing.assert_array_equal(shared, repeated)
    assert len({tuple(output) for output in shared.tolist()}) == 3


def test_shared_cache_is_not_copied_per_row(model):
    """No array of the compiled program is as large as the keys of the cache times the rows.

    The cache gets 97 slots, a prime, so that only the attention logits have sizes that are multiples of
    it too; with prompts of 3 tokens these are smaller.
    """
    config, params = model
    ten = compressed(model, [[5, GIST]], 1)
    slots = jnp.asarray(np.arange(97) % MAX_GIST)[None]
    layout = jax.tree.map(lambda x: x[:, slots[0]], ten.layout)
    gists = GistCache(ten.memory.take(slots), layout, ten.offset)
    tokens, segment = arrays([[7]] * ROWS, ROWS, 3)
    numbers = np.int32(NEW), np.int32(EOS), np.int32(0), None
    shape = dict(config=config, condition="gist", gist_token=GIST, max_new=NEW)
    program = generate.lower(params, tokens, segment, gists, *numbers, **shape).compile().as_text()
    heads, dim = gists.memory.cache.keys[0].shape[1::2]
    assert f"f32[1,{heads},97,{dim}]" in program  # the cache itself
    shapes = re.findall(r"f32\[([\d,]+)\]", program)
    sizes = {int(np.prod([int(d) for d in dims.split(",")])) for dims in shapes}
    assert not [size for size in sizes if size % 97 == 0 and size >= ROWS * heads * 97 * dim]


def test_bfloat16(model):
    """Matmuls that XLA's CPU backend has in some shapes only."""
    config, params = model
    half = config, jax.tree.map(lambda x: x.astype("bfloat16"), params)
    inputs = arrays([[7, 8, 9], [11]], 2, MAX_INPUT)
    for num_gist_tokens in (1, 5):  # the same programs
        gists = compressed(half, [[5, 6, 7] + [GIST] * num_gist_tokens] * 2, 2)
        assert gists.memory.cache.keys[0].dtype == "bfloat16"
        for prefix in (gists, gists[0]):
            output = run(half, *inputs, prefix)
            assert ((output >= 0) & (output < config.vocab_size)).all()
        prompts = arrays([[5, 6, 7, *[GIST] * num_gist_tokens, 7, 8, 9]], 1, 32)
        assert until_end(run(half, *prompts)[0])[0] == until_end(run(half, *inputs, gists)[0])[0]


def test_several_instructions_in_a_row(model):
    """Gist tokens in the middle of a prompt: its spans hide what came before them."""
    prompt = [5, 6, 7, GIST, 8, 9, 10, 11, GIST, 12, 13]
    config, params = model
    gists = compressed(model, [prompt[:9]], 1)
    assert np.asarray(gists.layout.segment).sum() == 2
    whole = run(model, *arrays([prompt], 1, 16))
    cached = run(model, *arrays([prompt[9:]], 1, MAX_INPUT), gists)
    np.testing.assert_array_equal(cached, whole)


def test_no_gradient_reaches_an_instruction_but_through_gist_positions(tiny):
    """With the gist keys, values and states held constant, nothing later depends on the instruction.

    The constants stand before the sequence as a prefix, and the sequence's own gist tokens
    are hidden from the later ones, so the states are those of the plain run. The outputs of an
    encoder-decoder see these constants and states, and nothing else.
    """
    config, stacked = tiny
    model = merge(unstacked(stacked), config)
    tokens = jnp.array([[5, 6, 7, 8, GIST, GIST, 9, 10, 11]])
    split, k = 6, 2
    layout = gist.layout_of(tokens, GIST)
    positions = gist.positions_of(layout.segment)
    mask = gist.attention_mask(layout, "gist", bidirectional=config.is_encoder_decoder)
    embeddings = model.embedding[tokens]

    @jax.jit
    def plain(embeddings):
        return model.prefill(Tokens(embeddings, positions, gist.mask_to_bias(mask)))

    _, memory = plain(embeddings)
    gists = memory.take(jnp.arange(split - k, split)[None])
    later = jnp.arange(tokens.shape[1])[:, None] >= split
    own = mask & ~(later & layout.is_gist[0])[None, None]
    constants = jnp.broadcast_to(later, (1, 1, tokens.shape[1], k))
    bias = gist.mask_to_bias(jnp.concatenate([constants, own], axis=-1))

    @jax.jit
    def held_constant(embeddings):
        return model.prefill(Tokens(embeddings, positions, bias), gists)

    def gradient(forward):
        return jax.jit(jax.grad(lambda x: jnp.sum(model.logits(forward(x)[0])[:, split:] ** 2)))

    np.testing.assert_allclose(
        held_constant(embeddings)[0][:, split:], plain(embeddings)[0][:, split:], atol=1e-5
    )
    through_gist = gradient(plain)(embeddings)[0]
    without = gradient(held_constant)(embeddings)[0]
    instruction, rest = slice(0, split - k), slice(split, None)
    assert np.all(np.asarray(without[instruction]) == 0)
    assert np.all(np.abs(through_gist[instruction]).max(axis=-1) > 0)
    assert np.all(np.abs(without[rest]).max(axis=-1) > 0)


def loop_bodies(program: str) -> str:
    """The text of all computations that the while loops of a compiled program call."""
    computations = dict(re.findall(r"^%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", program, re.M | re.S))
    reached, new = set(), set(re.findall(r"body=%?([\w.\-]+)", program))
    while new:
        reached |= new
        called = {
            name for body in new for name in re.findall(r"%([\w.\-]+)", computations.get(body, ""))
        }
        new = {name for name in called if name in computations} - reached
    return "\n".join(computations[name] for name in sorted(reached))


@pytest.mark.parametrize(
    ("model_family", "with_prefix"),
    [("llama", False), ("llama", True), ("t5", True)],
    indirect=["model_family"],
)
def test_a_decode_step_copies_no_cache(model, with_prefix):
    """In the compiled loop only the in-place update makes an array of a cache's size.

    The prompt's own cache is larger still, and nothing in the loop is as large as that.
    """
    config, params = model
    batch, length = 3, 203
    prefix = compressed(model, [[5, GIST]] * batch, batch) if with_prefix else None
    tokens, segment = arrays([[7, 8]] * batch, batch, length)
    numbers = np.int32(MANY), np.int32(EOS), np.int32(0), None
    shape = dict(config=config, condition="gist", gist_token=GIST, max_new=MANY)
    program = generate.lower(params, tokens, segment, prefix, *numbers, **shape).compile().as_text()
    layers, heads, dim = output_cache(config)
    made = [
        (int(np.prod([int(d) for d in dims.split(",")])), operation)
        for dims, operation in re.findall(r"= \w+\[([\d,]+)\]\S* ([\w\-]+)\(", loop_bodies(program))
    ]
    makers = [operation for size, operation in made if size >= batch * heads * MANY * dim]
    assert makers.count("dynamic-update-slice") == 2 * layers
    # Reading an element of a tuple or a parameter, or a view, makes nothing; a fusion's content is
    # listed with its own computation.
    nothing = {"dynamic-update-slice", "get-tuple-element", "parameter", "bitcast", "fusion"}
    assert set(makers) <= nothing


MANY = 151


def output_cache(config) -> tuple[int, int, int]:
    """Layers, heads and head dim of the cache of the output."""
    if config.is_encoder_decoder:
        return config.num_decoder_layers, config.num_heads, config.head_dim
    return config.num_layers, config.num_kv_heads, config.head_dim


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_limit_below_the_bucket(model):
    tokens, segment = arrays([[5, GIST, 7]], 1, 16)
    full, short = run(model, tokens, segment), run(model, tokens, segment, limit=3)
    np.testing.assert_array_equal(short[0, :3], full[0, :3])
    assert set(short[0, 3:].tolist()) == {EOS}


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_sampling_rows_do_not_depend_on_the_batch(model):
    prompts = [[5, 6, GIST, 7], [8, 9, 10, GIST, 11, 12]]
    how = Sampling(np.float32(1.0), np.int32(0), np.float32(1.0))
    both = run(model, *arrays(prompts, 2, 16), sampling=how, seed=3)
    first = run(model, *arrays(prompts[:1], 2, 16), sampling=how, seed=3)
    np.testing.assert_array_equal(both[0], first[0])
    other = run(model, *arrays(prompts, 2, 16), sampling=how, seed=4)
    assert (other != both).any()


def test_sampling_follows_the_probabilities_it_is_given():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(temperature=1.0, top_k=0, top_p=1.0):
        how = Sampling(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))
        drawn = sample(jnp.broadcast_to(logits, (4000, 4)), keys, how)
        return np.bincount(np.asarray(drawn), minlength=4) / 4000

    np.testing.assert_allclose(shares(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.7), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.0), [1, 0, 0, 0])
    squared = np.array([0.25, 0.09, 0.0225, 0.0025])
    np.testing.assert_allclose(shares(temperature=0.5), squared / squared.sum(), atol=0.03)


def test_buckets():
    sizes = [bucket(n) for n in range(1, 17)]
    assert sizes == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16]
    assert [bucket(n, smallest=16) for n in (1, 16, 17, 25, 33, 49)] == [16, 16, 24, 32, 48, 64]
