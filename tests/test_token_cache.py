"""Token ids on disk: the same as made anew, made once, and never read when they are damaged."""

import shutil

import numpy as np
import pytest

from gist_jax.data import token_cache as module
from gist_jax.data.batching import training_batches
from gist_jax.data.prompt_template import PromptTemplate
from gist_jax.data.rows import count_cut, make_row
from gist_jax.data.token_cache import token_cache
from gist_jax.data.tokenization import train_bpe
from gist_jax.errors import UserError

LONG = "long " * 2000
EXAMPLES = [
    {"instruction": f"Say {i}.", "input": "x" * (i % 4), "output": f"{i}" * (i % 5)} for i in range(30)
]
EXAMPLES += [{"instruction": LONG, "input": "", "output": "<GIST> </s>"}, EXAMPLES[3], EXAMPLES[3]]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gist_jax" / "tokens"


@pytest.fixture(scope="module", params=[None, 0])
def template(request):
    """Of a decoder alone, and of an encoder-decoder."""
    return PromptTemplate(train_bpe(["Instruction: Input: Output: Say"] * 3, 280), 2, request.param)


def test_the_cache_holds_what_the_template_makes(template, home, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    cache = token_cache(EXAMPLES, template, "one")
    assert len(cache) == len(EXAMPLES)
    for i, example in enumerate(EXAMPLES):
        assert cache[i] == template.encode_one(example)
    lengths = cache.lengths()
    assert lengths[0].tolist() == [len(part) for part in cache[0][:3]]
    # What stands in a text is text: no gist token and no end of sequence but our own.
    assert list(cache[30].output).count(template.tokenizer.gist_id) == 0
    assert list(cache[30].output).count(template.tokenizer.eos_id) == 1
    assert count_cut(lengths, template, 64, 64) == 1  # the long one
    sizes = dict(batch_size=4, max_length=64, max_output_length=64, seed=1)
    for settings in (dict(pack=True), dict(pack=False), dict(pack=False, buckets=(32, 48))):
        ours = training_batches(cache, template, **sizes, **settings)
        streamed = training_batches(EXAMPLES, template, **sizes, **settings)
        for _ in range(20):
            batch, expected = next(ours), next(streamed)
            for name, x in batch.items():
                np.testing.assert_array_equal(x, expected[name])
            weights = batch["weights"]
            # However long an example is, something is predicted.
            assert (np.where(batch["segment"] > 0, 1, 0).any(axis=1) == weights.any(axis=1)).all()


def test_a_megabyte_is_cut(template):
    decoder_only = template.decoder_start_token is None
    for field in ("instruction", "input", "output") if decoder_only else ("output",):
        example = {"instruction": "Say.", "input": "x", "output": "y", field: "word " * 200_000}
        row = make_row(template, 64, 48).map(template.encode_one(example))
        assert (row["tokens"] == template.tokenizer.gist_id).sum() == 2
        assert len(row["tokens"]) <= 64 and row["weights"].sum() > 0


def test_ids_are_made_once_and_again_when_they_are_damaged(template, home, monkeypatch):
    made = []
    build = module._build
    monkeypatch.setattr(module, "_build", lambda *given: made.append(build(*given)))
    expected = token_cache(EXAMPLES, template, "one")[5]
    assert token_cache(EXAMPLES, template, "one")[5] == expected and len(made) == 1
    token_cache(EXAMPLES, template, "two")
    other = PromptTemplate(train_bpe(["other"], 270), 1, template.decoder_start_token)
    token_cache(EXAMPLES, other, "one")
    more_gists = PromptTemplate(template.tokenizer, 5, template.decoder_start_token)
    token_cache(EXAMPLES, more_gists, "one")  # k does not count
    assert len(made) == 3
    for file in ("ids.npy", "bounds.npy", "own.npy", "checksums.json"):
        for d in [d for d in home.iterdir() if d.is_dir()]:
            damaged = bytearray((d / file).read_bytes())
            damaged[-1] ^= 1
            (d / file).write_bytes(damaged)
        before = len(made)
        assert token_cache(EXAMPLES, template, "one")[5] == expected and len(made) == before + 1


def test_what_a_kill_leaves_behind_is_not_read(template, home, monkeypatch):
    def fail(directory, *_):
        (directory / "ids.npy").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_build", fail)
        with pytest.raises(KeyboardInterrupt):
            token_cache(EXAMPLES, template, "one")
    assert not [d for d in home.iterdir() if d.is_dir()]
    token_cache(EXAMPLES, template, "one")
    (directory,) = (d for d in home.iterdir() if d.is_dir())
    half = directory.with_name(f".123.{directory.name}")  # as SIGKILL leaves it
    shutil.move(directory, half)
    (half / "checksums.json").unlink()
    assert len(token_cache(EXAMPLES, template, "one")) == len(EXAMPLES)
    assert [d for d in home.iterdir() if d.is_dir()] == [directory]


def test_a_cache_that_cannot_be_written(template, tmp_path, monkeypatch):
    (tmp_path / "gist_jax").write_text("in the way")
    with pytest.raises(UserError, match="set config.data.cache=False"):
        token_cache(EXAMPLES, template, "one")
