"""Instructions that are compressed after others, and rows of several caches in one."""

import dataclasses

import jax
import numpy as np
import pytest
from commands import INPUTS, INSTRUCTIONS, command, mistake
from test_generate import GIST, MAX_INPUT, arrays, run

import gist_jax
from gist_jax import compress
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.prefill import compress as compress_ids
from gist_jax.inference.prefill import prefill
from gist_jax.models import registry
from gist_jax.models.registry import merge
from gist_jax.models.stack import unstacked

FIRST = ["Say the word tea.", "Write green, then say the second word of the input."]
SETTINGS = dict(max_new_tokens=8)
llama_alone = pytest.mark.parametrize("model_family", ["llama"], indirect=True)


@pytest.fixture(scope="module")
def model(tiny):
    """Configuration, and parameters with unrolled layers."""
    return tiny[0], unstacked(tiny[1])


def first_logits(params, config, rows, gist_token, prefix=None):
    """Logits of the first token of every output, float32 [B, V]."""

    @jax.jit
    def logits(params, tokens, segment, prefix):
        made = merge(params, config)
        settings = dict(condition="gist", gist_token=gist_token, max_new=1)
        return made.logits(prefill(made, tokens, segment, prefix, **settings)[0].hidden)[:, 0]

    length = max(map(len, rows))
    return np.asarray(logits(params, *arrays(rows, len(rows), length), prefix))


@pytest.mark.parametrize(
    ("model_family", "one_for_all"),
    [("llama", False), ("llama", True), ("t5", True)],
    indirect=["model_family"],
)
def test_continued_caches_equal_whole_prompts(model, one_for_all):
    """Of a random model: a, gists, b, gists, c, gists under the gist rule, with different k."""
    config, params = model
    rng = np.random.default_rng(0)

    def ids(length, k=0):
        return [*map(int, rng.integers(3, GIST, length)), *[GIST] * k]

    spans = [[ids(9, 2), ids(4, 1), ids(17, 3)], [ids(5, 1), ids(11, 3), ids(3, 2)]]
    spans += [[ids(1, 1), ids(2, 1), ids(1, 2)]]
    if one_for_all:
        spans[0] = spans[0][:1] * 3
    inputs = [ids(4), ids(7), ids(1)]
    gists = None
    for number, rows in enumerate(spans):
        once = one_for_all and number == 0
        settings = dict(config=config, gist_token=GIST, num_kept=3, prefix=gists)
        padded = arrays(rows[: 1 if once else 3], 1 if once else 3, 20, left=number == 1)
        gists = compress_ids(params, *padded, **settings)
    whole = [sum(parts, []) for parts in zip(*spans, inputs, strict=True)]
    kept = [row.count(GIST) for row in whole]
    assert np.asarray(gists.layout.segment).sum(axis=1).tolist() == kept
    assert gists.offset.tolist() == [len(w) - len(i) for w, i in zip(whole, inputs, strict=True)]
    expected = first_logits(params, config, whole, GIST)
    found = first_logits(params, config, inputs, GIST, gists)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    without = dataclasses.replace(gists, layout=hidden(gists))
    without = first_logits(params, config, inputs, GIST, without)
    assert np.abs(without - expected).max() > 0.1
    np.testing.assert_array_equal(
        run(model, *arrays(inputs, 3, MAX_INPUT), gists), run(model, *arrays(whole, 3, 64))
    )


def hidden(gists):
    """The layout without the gist tokens of the first span."""
    segment = np.where(np.asarray(gists.layout.span) == 0, 0, np.asarray(gists.layout.segment))
    return gists.layout._replace(segment=segment)


def test_compress_after(lm, tmp_path):
    gists = lm.compress(INSTRUCTIONS, after=lm.compress(FIRST))
    heads = [
        lm.template.instruction_ids(a) + lm.template.instruction_ids(b, continues=True)
        for a, b in zip(FIRST, INSTRUCTIONS, strict=True)
    ]
    assert [len(head) for head in heads] == gists.offset.tolist()
    assert all(row.count(lm.tokenizer.bos_id) == (lm.config.family == "llama") for row in heads)
    inputs = [lm.template.input_ids(text) for text in INPUTS]
    whole = [head + row for head, row in zip(heads, inputs, strict=True)]
    expected = lm.generate_ids(whole, None, 8)
    np.testing.assert_array_equal(lm.generate_ids(inputs, gists, 8), expected)
    texts = [lm.tokenizer.decode(row) for row in expected]
    assert lm.generate(gists, inputs=INPUTS, **SETTINGS) == texts
    settings = lm.params, lm.config
    logits = first_logits(*settings, whole, lm.tokenizer.gist_id)
    cached = first_logits(*settings, inputs, lm.tokenizer.gist_id, gists.bare("float32"))
    np.testing.assert_allclose(cached, logits, atol=1e-5)

    assert gists.instructions[1] == f"{FIRST[1]}\n<GIST>\n{INSTRUCTIONS[1]}"
    assert gists.num_gist_tokens == 2 and gists.origin == lm.origin
    gists.save(tmp_path / "x.gist.safetensors")
    loaded = GistCache.load(tmp_path / "x.gist.safetensors")
    assert loaded.instructions == gists.instructions
    assert lm.generate(loaded, inputs=INPUTS, **SETTINGS) == texts

    one = lm.compress(INSTRUCTIONS, after=lm.compress(FIRST[0]))
    each = lm.compress(INSTRUCTIONS, after=lm.compress([FIRST[0]] * 2))
    assert one.instructions == each.instructions
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(each), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@llama_alone
def test_after_rebased_caches(lm):
    """They take up k positions; what is made after them stands in no run, and says so."""
    first = lm.rebase(lm.compress(FIRST))
    gists = lm.compress(INSTRUCTIONS, after=first)
    lengths = [len(lm.template.instruction_ids(text, continues=True)) for text in INSTRUCTIONS]
    assert gists.offset.tolist() == [1 + n for n in lengths]
    assert not gists.origin.rebased
    unmoved = lm.compress(INSTRUCTIONS, after=lm.compress(FIRST))
    assert lm.generate(gists, inputs=INPUTS, **SETTINGS) == lm.generate(
        unmoved, inputs=INPUTS, **SETTINGS
    )


@llama_alone
def test_what_cannot_go_on(lm):
    first = lm.compress(FIRST)
    gists = lm.compress(INSTRUCTIONS, after=first)
    with pytest.raises(ValueError, match="do not stand in one run"):
        lm.rebase(gists)
    if not lm.config.is_encoder_decoder:
        with pytest.raises(ValueError, match="do not stand in one run"):
            lm.prefix(gists)
        with pytest.raises(ValueError, match="tokens are needed, but the model has only 96 positions"):
            lm.compress("red " * 50, after=lm.compress("red " * 50))
    with pytest.raises(ValueError, match="there are 2 gist caches for 3 instructions: give one"):
        lm.compress([*INSTRUCTIONS, "Say red."], after=first)
    origin = dataclasses.replace(lm.origin, adapter="another")
    with pytest.raises(ValueError, match="another adapter made the gist cache, or none"):
        lm.compress(INSTRUCTIONS, after=dataclasses.replace(first, origin=origin))
    settings = dict(config=lm.config, tokenizer=lm.tokenizer, num_gist_tokens=1)
    other = LanguageModel.from_params(registry.init(lm.config, jax.random.key(0)), **settings)
    with pytest.raises(ValueError, match="was made by another model or tokenizer"):
        other.compress(INSTRUCTIONS, after=first)


@llama_alone
def test_command_and_library(lm, workdir, tmp_path, monkeypatch, capsys):
    one, both = tmp_path / "one.gist.safetensors", tmp_path / "both.gist.safetensors"
    model = f"--model={workdir}"
    command(compress, monkeypatch, capsys, model, f"--instruction={FIRST[0]}", f"--output={one}")
    after = f"--after={one}", f"--instruction={INSTRUCTIONS[0]}"
    command(compress, monkeypatch, capsys, model, *after, f"--output={both}")
    gists = lm.compress(INSTRUCTIONS[0], after=lm.compress(FIRST[0]))
    loaded = GistCache.load(both)
    assert loaded.instructions == gists.instructions
    np.testing.assert_allclose(loaded.memory.cache.keys[0], gists.memory.cache.keys[0], atol=1e-6)
    missing = "--after=nowhere", f"--instruction={INSTRUCTIONS[0]}", f"--output={tmp_path}/x"
    sentence = mistake(compress, monkeypatch, capsys, model, *missing)
    assert sentence.startswith("error: cannot read the gist cache nowhere")

    library = gist_jax.GistLibrary(tmp_path / "gists")
    old = dataclasses.replace(gists, origin=dataclasses.replace(lm.origin, base="older"))
    library.put({"two": old})
    assert library.renew(lm) == ["two"]
    assert library["two"].origin == lm.origin
    assert lm.generate(library["two"], inputs=INPUTS, **SETTINGS) == lm.generate(
        gists, inputs=INPUTS, **SETTINGS
    )


def test_rows_of_several_caches(lm, tmp_path):
    """A row with fewer gist tokens is padded, and writes as it does alone."""
    short, long = lm.compress(INSTRUCTIONS[0]), lm.compress(INSTRUCTIONS, after=lm.compress(FIRST))
    gists = GistCache.stack([short, long, short])
    assert len(gists) == 4 and gists.num_gist_tokens == 2
    assert gists.layout.segment.tolist() == [[1, 0], [1, 1], [1, 1], [1, 0]]
    assert gists.instructions == (*short.instructions, *long.instructions, *short.instructions)
    gists.save(tmp_path / "x.gist.safetensors")
    loaded = GistCache.load(tmp_path / "x.gist.safetensors")
    outputs = lm.generate(loaded, inputs=[INPUTS[0], *INPUTS, INPUTS[1]], **SETTINGS)
    assert outputs[1:3] == lm.generate(long, inputs=INPUTS, **SETTINGS)
    assert [outputs[0], outputs[3]] == lm.generate(short, inputs=INPUTS, **SETTINGS)
    after = lm.compress(INSTRUCTIONS, after=GistCache.stack([short, long[0]]))
    assert after.layout.segment.tolist() == [[1, 0, 1], [1, 1, 1]]
    nameless = GistCache.stack([short, dataclasses.replace(short, instructions=())])
    assert nameless.instructions == ()
    assert lm.compress(INSTRUCTIONS, after=nameless).instructions == ()
    with pytest.raises(ValueError, match="there is no gist cache to stack"):
        GistCache.stack([])
    other = dataclasses.replace(short, origin=dataclasses.replace(lm.origin, base="another"))
    half = dataclasses.replace(short.bare("bfloat16"), origin=lm.origin)
    for different in (other, lm.rebase(short), half):
        with pytest.raises(ValueError, match="stack only if one model made them"):
            GistCache.stack([short, different])
