"""Ablations of the mask: hand-drawn masks, what gradients may flow, and caches that equal prompts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from commands import INPUTS, INSTRUCTIONS
from steps import GIST, MODELS, longer_and_packed, random_batch, start
from test_generate import arrays
from test_gist import draw
from tiny import TINY

import gist_jax
from gist_jax import gist
from gist_jax.data import instructions
from gist_jax.data.batching import training_batches
from gist_jax.data.prompt_template import PromptTemplate
from gist_jax.data.tokenization import SPECIAL_TOKENS, from_tokenizers
from gist_jax.gist import MaskConfig
from gist_jax.inference.prefill import compress, make_tokens, prefill
from gist_jax.models import registry
from gist_jax.models.model import Tokens
from gist_jax.models.stack import unstacked
from gist_jax.training.loop import train
from gist_jax.training.run import prepare
from gist_jax.training.step import StepConfig, summed_loss

# Of either family what it can have.
ABLATIONS = {
    "llama": [MaskConfig(extra=2), MaskConfig(placement="spread"), MaskConfig(3, False, "spread")],
    "t5": [
        MaskConfig(extra=2),
        MaskConfig(causal_gists=True),
        MaskConfig(placement="spread"),
        MaskConfig(placement="before"),
        MaskConfig(1, True, "before"),
    ],
}


# No mask asks how deep a model is, as long as there are two layers that read it.
SMALL = TINY | {"t5": dataclasses.replace(TINY["t5"], num_layers=2, num_decoder_layers=1)}


def ablations():
    return [(family, mask) for family, masks in ABLATIONS.items() for mask in masks]


def layout_of(tokens, extra=0, span=None, segment=None):
    """Of one row, in which G is a gist token."""
    row, span, segment = (
        x if x is None else jnp.array([x])
        for x in ([GIST if t == "G" else t for t in tokens], span, segment)
    )
    return gist.layout_of(row, GIST, segment, span, extra)


def cross_and_own(layout):
    """What an output of two tokens sees of an encoder's tokens, and of its own."""
    return draw(
        gist.attention_mask(gist.following(layout, jnp.ones((1, 2), int)), "gist", before=layout)
    )


def test_extra_instruction_tokens():
    layout = layout_of([1, 2, 3, "G", 4, 5], extra=1)
    expected = ["x.....", "xx....", "xxx...", "xxxx..", "..xxx.", "..xxxx"]
    assert draw(gist.attention_mask(layout, "gist")) == expected
    hidden = [*expected[:4], "....x.", "....xx"]
    assert draw(gist.attention_mask(layout, "neg_control")) == hidden
    # Not more than there are, and none of a span that is not compressed.
    layout = layout_of([1, "G", 2, 3, 4, "G", 5, 6], extra=2)
    expected = ["x.......", "xx......", "xxx.....", "xxxx....", "xxxxx...", "xxxxxx.."]
    expected += ["xx.xxxx.", "xx.xxxxx"]
    assert draw(gist.attention_mask(layout, "gist")) == expected
    layout = layout_of([1, 2, "G", 3], extra=1)
    encoder = gist.attention_mask(layout, "gist", bidirectional=True)
    assert draw(encoder) == ["xxx.", "xxx.", "xxx.", ".xxx"]
    assert cross_and_own(layout) == [".xxxx.", ".xxxxx"]
    # Packed and padded: every example has its own.
    layout = layout_of([0, 1, 2, "G", 3, 4, "G", 5, 6], extra=1, segment=[0, 1, 1, 1, 1, 2, 2, 2, 0])
    assert draw(layout.is_gist[None, None]) == ["..xx.xx.."]


def test_causal_gists():
    options = dict(bidirectional=True, causal_gists=True)
    layout = layout_of([1, "G", "G", 2])
    assert draw(gist.attention_mask(layout, "gist", **options)) == ["xxx.", "xx..", "xxx.", ".xxx"]
    assert cross_and_own(layout) == [".xxxx.", ".xxxxx"]
    layout = layout_of([1, 2, "G", "G", 3], extra=1)
    expected = ["xxxx.", "xx...", "xxx..", "xxxx.", ".xxxx"]
    assert draw(gist.attention_mask(layout, "gist", **options)) == expected
    # A decoder's are causal as they are.
    layout = layout_of([1, "G", "G", 2])
    decoder = gist.attention_mask(layout, "gist", causal_gists=True)
    assert draw(decoder) == draw(gist.attention_mask(layout, "gist"))


def test_gist_tokens_before_an_instruction():
    layout = layout_of(["G", "G", 1, 2, 3], span=[0, 0, 0, 0, 1])
    encoder = gist.attention_mask(layout, "gist", bidirectional=True)
    assert draw(encoder) == ["xxxx.", "xxxx.", "xxxx.", "xxxx.", "xx..x"]
    assert cross_and_own(layout) == ["xx..xx.", "xx..xxx"]
    packed = layout_of(
        ["G", 1, 2, "G", 3, 4], span=[0, 0, 1, 0, 0, 1], segment=[1, 1, 1, 2, 2, 2], extra=0
    )
    encoder = gist.attention_mask(packed, "gist", bidirectional=True)
    assert draw(encoder) == ["xx....", "xx....", "x.x...", "...xx.", "...xx.", "...x.x"]


def test_gist_tokens_spread_over_an_instruction():
    layout = layout_of([1, "G", 2, "G", 3], span=[0, 0, 0, 0, 1])
    decoder = gist.attention_mask(layout, "gist")
    assert draw(decoder) == ["x....", "xx...", "xxx..", "xxxx.", ".x.xx"]
    encoder = gist.attention_mask(layout, "gist", bidirectional=True)
    assert draw(encoder) == ["xxxx.", "xxxx.", "xxxx.", "xxxx.", ".x.xx"]
    assert cross_and_own(layout) == [".x.xxx.", ".x.xxxx"]
    both = layout_of([1, "G", 2, "G", 3], span=[0, 0, 0, 0, 1], extra=1)
    assert draw(gist.attention_mask(both, "gist")) == ["x....", "xx...", "xxx..", "xxxx.", ".xxxx"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (dict(extra=-1), "extra must be a whole number, at least 0, but is -1"),
        (dict(extra=True), "extra must be a whole number"),
        (dict(causal_gists=1), "causal_gists must be True or False"),
        (dict(placement="beside"), "placement is 'beside' but must be one of after, before, spread"),
    ],
)
def test_masks_that_cannot_be(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        MaskConfig(**wrong)


def placed(instruction, k, mask, rest=()):
    """Ids with their gist tokens, and their spans."""
    template = PromptTemplate(_Ids, k, placement=mask.placement)
    prompt = template._with_gists(instruction) + list(rest)
    return prompt, [0] * prompt.head + [1] * len(rest)


class _Ids:
    """In place of a tokenizer."""

    gist_id, space_id = GIST, None


def test_where_gist_tokens_stand():
    for placement, expected in {
        "after": [1, 2, 3, 4, 5, GIST, GIST],
        "before": [GIST, GIST, 1, 2, 3, 4, 5],
        "spread": [1, 2, 3, GIST, 4, 5, GIST],
    }.items():
        ids, span = placed([1, 2, 3, 4, 5], 2, MaskConfig(placement=placement), [6])
        assert ids == [*expected, 6] and span == [0] * 7 + [1]
    assert placed([1, 2], 4, MaskConfig(placement="spread"))[0] == [1, GIST, GIST, 2, GIST, GIST]
    # T5's lone space stands where the paper's gist tokens do, and nowhere else.
    tokenizer = dataclasses.replace(real_tokenizer(), space_id=3)
    for placement, spaces in {"after": 1, "before": 0, "spread": 0}.items():
        template = PromptTemplate(tokenizer, 2, 0, placement=placement)
        assert template.instruction_ids("say red").count(3) == spaces
    for limit in (4, 6):
        template = PromptTemplate(tokenizer, 2, 0, placement="before")
        ids = template.instruction_ids("say red and green", max_length=limit)
        assert len(ids) == limit and ids[:2] == [tokenizer.gist_id] * 2


@functools.cache
def real_tokenizer():
    return from_tokenizers(instructions.load_tokenizer(), SPECIAL_TOKENS)


@pytest.mark.parametrize(("family", "mask"), ablations())
def test_no_gradient_reaches_an_instruction_but_through_what_counts_as_gist_tokens(family, mask):
    """As in test_generate.py: with the memory of these held constant, no later token depends on it."""
    config = SMALL[family]
    model = registry.merge(unstacked(params_of(family)), config)
    ids, span = placed([5, 6, 7, 8], 2, mask, [9, 10, 11])
    layout = gist.layout_of(jnp.array([ids]), GIST, None, jnp.array([span]), mask.extra)
    options = dict(bidirectional=config.is_encoder_decoder, causal_gists=mask.causal_gists)
    visible = gist.attention_mask(layout, "gist", **options)
    positions, later = gist.positions_of(layout.segment), jnp.array(span)[:, None] == 1
    embeddings = model.embedding[jnp.array([ids])]

    def plain(embeddings):
        return model.prefill(Tokens(embeddings, positions, gist.mask_to_bias(visible)))

    def gradients(kept):
        """Of logits after the instruction, with the memory of the tokens in `kept` held constant."""
        slots = jnp.flatnonzero(kept)[None]
        constants = jax.lax.stop_gradient(jax.jit(plain)(embeddings)[1].take(slots))
        own = visible & ~(later & kept)[None, None]
        seen = jnp.broadcast_to(later, (1, 1, len(ids), slots.shape[1]))
        bias = gist.mask_to_bias(jnp.concatenate([seen, own], axis=-1))

        def loss(embeddings):
            hidden = model.prefill(Tokens(embeddings, positions, bias), constants)[0]
            return jnp.sum(model.logits(hidden)[:, mask_length:] ** 2)

        return np.abs(jax.jit(jax.grad(loss))(embeddings)[0]).max(axis=-1)

    mask_length = span.count(0)
    without = gradients(layout.is_gist[0])
    assert np.all(without[:mask_length] == 0) and np.all(without[mask_length:] > 0)
    through = jax.grad(lambda x: jnp.sum(model.logits(plain(x)[0])[:, mask_length:] ** 2))
    assert np.all(np.abs(jax.jit(through)(embeddings)[0]).max(axis=-1) > 0)
    if mask.extra:  # they do carry something
        gists_alone = gradients(jnp.array(ids) == GIST)
        extras = np.asarray(layout.is_gist[0]) & (np.array(ids) != GIST)
        assert extras.sum() == mask.extra and np.all(gists_alone[extras.nonzero()] > 0)


@functools.cache
def params_of(family):
    return jax.jit(registry.init, static_argnums=0)(SMALL[family], jax.random.key(7))


@pytest.mark.parametrize("causal_gists", [False, True])
def test_a_causal_gist_token_gets_nothing_from_later_ones(causal_gists):
    """In one layer: in several the instruction's own tokens pass it on."""
    config = dataclasses.replace(TINY["t5"], num_layers=1)
    model = registry.merge(unstacked(registry.init(config, jax.random.key(7))), config)
    layout = layout_of([5, 6, "G", "G", 7])
    visible = gist.attention_mask(layout, "gist", bidirectional=True, causal_gists=causal_gists)
    bias, positions = gist.mask_to_bias(visible), gist.positions_of(layout.segment)
    embeddings = model.embedding[jnp.array([[5, 6, GIST, GIST, 7]])]

    @jax.jit
    def flow(embeddings):
        def state(x, slot):
            return jnp.sum(model.prefill(Tokens(x, positions, bias))[0][0, slot] ** 2)

        return [jnp.abs(jax.grad(state)(embeddings, slot)[0]).max(axis=-1) for slot in (2, 3)]

    first, second = flow(embeddings)
    assert (first[3] > 0) == (not causal_gists)
    assert np.all(first[:3] > 0) and np.all(second[:4] > 0)
    assert first[4] == second[4] == 0


@pytest.mark.parametrize(("family", "mask"), ablations())
def test_caches_equal_whole_prompts(family, mask):
    """Of two spans, ragged: the logits after a, gists, b, gists and an input."""
    config, params = SMALL[family], unstacked(params_of(family))
    rng, k = np.random.default_rng(0), 2
    rows = [[[int(t) for t in rng.integers(3, GIST, n)] for n in row] for row in ((9, 4, 3), (2, 11, 5))]
    settings = dict(gist_token=GIST, mask=mask)
    gists, whole, spans = None, [[], []], [[], []]
    for number in range(2):
        heads = [placed(row[number], k, mask)[0] for row in rows]
        tokens, segment = arrays(heads, 2, 16)
        spans_given = np.zeros_like(tokens) if mask.placement != "after" else None
        more = dict(num_kept=k + mask.extra, prefix=gists, span=spans_given)
        gists = compress(params, tokens, segment, config=config, **more, **settings)
        for i, head in enumerate(heads):
            whole[i] += head
            spans[i] += [number] * len(head)
    inputs = [row[2] for row in rows]
    kept = [sum(k + min(len(part), mask.extra) for part in row[:2]) for row in rows]
    assert np.asarray(gists.layout.segment).sum(axis=1).tolist() == kept
    whole = [a + b for a, b in zip(whole, inputs, strict=True)]
    spans = [a + [2] * len(b) for a, b in zip(spans, inputs, strict=True)]

    @jax.jit
    def logits(params, tokens, segment, prefix, span):
        model = registry.merge(params, config)
        options = dict(condition="gist", max_new=1, span=span, **settings)
        return model.logits(prefill(model, tokens, segment, prefix, **options)[0].hidden)

    span = arrays(spans, 2, 32)[0] if mask.placement != "after" else None
    expected = logits(params, *arrays(whole, 2, 32), None, span)
    found = logits(params, *arrays(inputs, 2, 8), gists, None)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_losses_do_not_depend_on_packing(model_family):
    model, mask = MODELS[model_family], ABLATIONS[model_family][-1]
    batch = random_batch(model, rows=3)
    batch["tokens"][:, 3] = GIST
    batch["span"] = np.broadcast_to(np.arange(24) > 6, (3, 24)).astype(np.int32)
    config = StepConfig("gist", GIST, mask=mask)
    loss = jax.jit(summed_loss, static_argnums=(1, 2))
    longer, packed = (loss(start(model_family), model, config, b) for b in longer_and_packed(batch))
    np.testing.assert_allclose(packed, longer, rtol=1e-5)
    paper = StepConfig("gist", GIST)
    other = loss(start(model_family), model, paper, longer_and_packed(batch)[0])
    assert abs(other - longer) > 1e-3 * longer


@pytest.mark.parametrize("options", [dict(pack=True), dict(pack=False), dict(pack=False, buckets=(24,))])
def test_rows_say_their_spans(model_family, options):
    tokenizer, mask = real_tokenizer(), ABLATIONS[model_family][-1]
    template = PromptTemplate.of_model(TINY[model_family], tokenizer, 2, "paper", mask.placement)
    sizes = dict(batch_size=4, max_length=64, max_output_length=16)
    corpus = instructions.Corpus("train")
    batch = next(training_batches(corpus, template, **sizes, seed=0, **options))
    assert batch["span"].shape == batch["tokens"].shape and batch["span"].dtype == np.int32
    for row in range(4):
        for number in range(1, batch["segment"][row].max() + 1):
            of_example = batch["segment"][row] == number
            span, tokens = batch["span"][row][of_example], batch["tokens"][row][of_example]
            assert span[0] == 0 and span[-1] == 1 and np.all(np.diff(span) >= 0)
            assert np.all(span[tokens == tokenizer.gist_id] == 0)
            assert (tokens == tokenizer.gist_id).sum() == 2
    paper = PromptTemplate.of_model(TINY[model_family], tokenizer, 2)
    assert "span" not in next(training_batches(corpus, paper, **sizes, seed=0, **options))


def test_an_adapter_acts_at_gist_tokens_alone():
    """Other tokens that count as gist tokens are the base's."""
    ids = jnp.array([[1, 2, GIST, 3]])
    layout = gist.layout_of(ids, GIST, extra=1)
    settings = dict(condition="gist", gist_token=GIST, dtype="float32")
    tokens = make_tokens(ids, layout, gist.positions_of(layout.segment), **settings)
    assert tokens.adapts.tolist() == [[False, False, True, False]]


def test_a_run_remembers_its_mask(tmp_path):
    config, mask = quick.get_config(), ABLATIONS["llama"][-1]
    config.num_steps, config.num_gist_tokens = 1, 2
    config.mask.update(dataclasses.asdict(mask))
    train(prepare(config, tmp_path / "run"))
    lm = gist_jax.load(tmp_path / "run")
    gists = lm.compress(INSTRUCTIONS)
    assert lm.mask == mask and gists.num_gist_tokens == 2 + mask.extra
    settings = dict(inputs=INPUTS, max_new_tokens=8)
    written = lm.generate(gists, **settings)
    assert written == lm.generate(instructions=INSTRUCTIONS, **settings)
    with pytest.raises(ValueError, match="do not stand in one run"):
        lm.prefix(gists)
    lm.export(tmp_path / "export")
    again = gist_jax.load(tmp_path / "export")
    assert again.mask == mask and again.generate(gists, **settings) == written


def test_mistakes(tmp_path):
    config = quick.get_config()
    config.mask.placement = "before"
    with pytest.raises(ValueError, match="mask.placement is 'before', which is for encoders"):
        prepare(config, tmp_path / "x")
    config.mask.placement = "beside"
    with pytest.raises(ValueError, match="config.mask.placement is 'beside' but must be one of"):
        prepare(config, tmp_path / "x")
    assert not (tmp_path / "x").exists()
