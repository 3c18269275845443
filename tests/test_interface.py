"""The Python interface and the command-line commands, on a run of a few steps."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
import quick
import tokenizers
from commands import INPUTS, INSTRUCTIONS, command

import gist_jax
from gist_jax import compress, evaluate, generate
from gist_jax.data import instructions
from gist_jax.data.tokenization import SPECIAL_TOKENS, from_tokenizers, load_tokenizer
from gist_jax.evaluation import predict
from gist_jax.evaluation.predictions import read_predictions
from gist_jax.inference import decode, prefill
from gist_jax.inference.language_model import LanguageModel
from gist_jax.models import registry
from gist_jax.training.run import prepare
from gist_jax.workdir import read_metrics

llama_alone = pytest.mark.parametrize("model_family", ["llama"], indirect=True)


@llama_alone
def test_evaluation_of_a_run(workdir):
    last = read_metrics(workdir)[-1]
    for split in ("seen", "unseen", "human"):
        for metric in ("rouge1", "rouge2", "rougeL", "exact_match"):
            assert 0 <= last[f"validation_{split}/{metric}"] <= 100
        assert len(read_predictions(workdir / "predictions" / f"8-validation_{split}.csv")) == 4
    assert any((workdir / "tensorboard").iterdir())


@llama_alone
def test_lengths_of_a_split(workdir, tmp_path, monkeypatch, capsys):
    """The config asks for three new tokens at most in the human split, in a run and at the command."""
    asked = {}

    def predicted(model, examples, *, description, between=None, **lengths):
        asked[description] = lengths["max_new_tokens"]
        return [{"instruction": "a", "input": "b", "reference": "c", "prediction": "c"}]

    monkeypatch.setattr(predict, "predict", predicted)
    monkeypatch.setattr(evaluate, "predict", predicted)
    config = quick.get_config("t5")
    run = prepare(config, tmp_path / "lengths")
    predict.evaluator(run)(run.init(), 1, lambda: None)
    assert asked == {"validation_seen": 8, "validation_unseen": 8, "validation_human": 3}
    asked.clear()
    command(evaluate, monkeypatch, capsys, f"--model={workdir}", "--split=validation_human")
    command(evaluate, monkeypatch, capsys, f"--model={workdir}", "--split=validation_seen")
    assert asked == {"validation_seen": 8, "validation_human": 3}


def test_cache_equals_whole_prompt(lm):
    gists = lm.compress(INSTRUCTIONS)
    assert len(gists) == 2 and gists.num_gist_tokens == 1
    settings = dict(inputs=INPUTS, max_new_tokens=8)
    assert lm.generate(gists, **settings) == lm.generate(instructions=INSTRUCTIONS, **settings)
    one = lm.generate(gists[0], inputs=INPUTS, max_new_tokens=8)
    assert one[0] == lm.generate(gists[[0]], inputs=INPUTS[:1], max_new_tokens=8)[0]
    three = lm.generate(gists[[0, 1, 1]], inputs=[*INPUTS, ""], max_new_tokens=8)
    assert three[:2] == lm.generate(gists, **settings)


@llama_alone
def test_one_compilation_per_bucket(lm):
    lm.generate(instructions=INSTRUCTIONS[:1], inputs=["red cow"], max_new_tokens=5)
    lm.compress(INSTRUCTIONS)
    programs = decode.generate, prefill.compress
    before = [program._cache_size() for program in programs]
    lm.generate(instructions=INSTRUCTIONS[:1], inputs=["red cow dog"], max_new_tokens=7)
    lm.compress(["Say red.", "Say the first word of the input."])
    assert [program._cache_size() for program in programs] == before


def test_save_and_load(lm, tmp_path):
    gists = lm.compress(INSTRUCTIONS)
    gists.save(tmp_path / "x.gist.safetensors")
    loaded = gist_jax.GistCache.load(tmp_path / "x.gist.safetensors")
    assert jax.tree.structure(loaded) == jax.tree.structure(gists)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(gists), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gist.safetensors"]


@llama_alone
def test_rows_of_a_cache(lm):
    gists = lm.compress(INSTRUCTIONS)
    assert len(gists[np.int64(1)]) == len(gists[-1]) == 1
    np.testing.assert_array_equal(gists[[1, 0]].offset, gists.offset[::-1])
    for rows in (2, [0, 2], [-3]):
        with pytest.raises(IndexError):
            gists[rows]


@llama_alone
def test_an_origin_sees_every_parameter_and_every_token(lm):
    params = registry.init(lm.config, jax.random.key(0))
    settings = dict(config=lm.config, tokenizer=lm.tokenizer, num_gist_tokens=1)
    known = LanguageModel.from_params(params, **settings).origin
    assert known == LanguageModel.from_params(params, **settings).origin
    for change in (
        lambda x: x.at[lm.tokenizer.gist_id].multiply(1.1),
        lambda x: x.at[np.array([3, 4])].set(x[np.array([4, 3])]),
    ):
        other = {**params, "embedding": change(params["embedding"])}
        assert LanguageModel.from_params(other, **settings).origin != known
    swapped = json.loads(instructions.load_tokenizer().to_str())
    ids = swapped["model"]["vocab"]
    ids["red"], ids["count"] = ids["count"], ids["red"]
    tokenizer = from_tokenizers(tokenizers.Tokenizer.from_str(json.dumps(swapped)), SPECIAL_TOKENS)
    assert tokenizer.fingerprint() != lm.tokenizer.fingerprint()


def test_every_row_has_its_own_positions(lm):
    """A long instruction with a short input and the reverse: together they fit too."""
    spoken, given = ["red " * 50, "Say red."], ["cow", "dog " * 50]
    outputs = lm.generate(lm.compress(spoken), inputs=given, max_new_tokens=8)
    assert outputs == lm.generate(instructions=spoken, inputs=given, max_new_tokens=8)


@llama_alone
def test_files_that_cannot_be_written(lm):
    with pytest.raises(OSError):
        lm.compress(INSTRUCTIONS).save("/proc/x")


@llama_alone
def test_bfloat16_caches_keep_their_dtype_and_model(workdir, lm, tmp_path):
    half = gist_jax.load(workdir, dtype="bfloat16")
    assert half.origin == lm.origin
    half.compress(INSTRUCTIONS).save(tmp_path / "x")
    loaded = gist_jax.GistCache.load(tmp_path / "x")
    assert loaded.memory.cache.keys[0].dtype == "bfloat16"
    assert len(half.generate(loaded, inputs=INPUTS, max_new_tokens=4)) == 2


@llama_alone
def test_commands(workdir, lm, tmp_path, monkeypatch, capsys):
    file, predictions = str(tmp_path / "x.gist.safetensors"), str(tmp_path / "preds.csv")
    model = f"--model={workdir}"
    spoken = [f"--instruction={text}" for text in INSTRUCTIONS]
    given = [f"--input={text}" for text in INPUTS]
    command(compress, monkeypatch, capsys, model, *spoken, f"--output={file}")
    cached = command(generate, monkeypatch, capsys, model, f"--gist={file}", *given)
    whole = command(generate, monkeypatch, capsys, model, *spoken, *given)
    expected = lm.generate(instructions=INSTRUCTIONS, inputs=INPUTS)
    assert cached == whole == "\n".join(expected) + "\n"

    small = ["--num_examples=6", "--max_new_tokens=8", "--split=validation_unseen"]
    printed = command(evaluate, monkeypatch, capsys, model, *small, f"--output={predictions}")
    assert len(read_predictions(predictions)) == 6
    assert printed == command(evaluate, monkeypatch, capsys, f"--predictions={predictions}")
    assert printed.startswith("6 rows\nmetric ") and "\nrougeLsum " in printed


@llama_alone
def test_a_tokenizer_survives_being_saved(lm, tmp_path):
    lm.tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint() == lm.tokenizer.fingerprint()
    assert again.gist_id == lm.tokenizer.gist_id
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
    text = "say <GIST> twice </s>"
    assert again.gist_id not in again.encode(text) and again.eos_id not in again.encode(text)


def test_the_documentation_speaks_the_vocabulary_of_the_corpus():
    """Its examples would otherwise be unknown words to the model of the demo."""
    root = pathlib.Path(__file__).parent.parent
    text = "".join((root / name).read_text() for name in ("README.md", "docs/getting_started.md"))
    tokenizer = instructions.load_tokenizer()
    spoken = re.findall(r'(?:compress\(|inputs=|--instruction=|--input=|^ {13})\[?"(.*)"', text, re.M)
    assert len(spoken) >= 7
    for text in spoken:
        assert tokenizer.token_to_id("<unk>") not in tokenizer.encode(text.replace('"', " ")).ids, text
