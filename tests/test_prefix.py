"""Gist caches moved to the first positions, in our own loop, and as files for others."""

import dataclasses

import numpy as np
import pytest
from commands import INPUTS, INSTRUCTIONS, command, mistake
from safetensors.numpy import load_file

from gist_jax import convert
from gist_jax.inference.gist_cache import GistCache


def test_rebased_caches_write_the_same(lm, tmp_path):
    gists = lm.compress(INSTRUCTIONS)
    rebased = lm.rebase(gists)
    assert rebased.origin.rebased and not gists.origin.rebased
    assert list(rebased.offset) == [1, 1] and min(gists.offset) > 1
    settings = dict(inputs=INPUTS, max_new_tokens=8)
    assert lm.generate(rebased, **settings) == lm.generate(gists, **settings)
    rebased.save(tmp_path / "x.gist.safetensors")
    loaded = GistCache.load(tmp_path / "x.gist.safetensors")
    assert loaded.origin.rebased and lm.generate(loaded, **settings) == lm.generate(gists, **settings)
    assert lm.rebase(rebased) is rebased
    with pytest.raises(ValueError, match="do not stand in one run"):
        lm.rebase(dataclasses.replace(gists, offset=gists.offset + 1))


def test_what_is_no_prefix(lm, tmp_path, monkeypatch, capsys):
    gists = lm.compress(INSTRUCTIONS)
    if lm.config.is_encoder_decoder:
        with pytest.raises(ValueError, match="stock encoders take no cache"):
            lm.prefix(gists)
        return
    with pytest.raises(ValueError, match="has no encoder"):
        lm.encode_inputs(gists, INPUTS)
    prefix = lm.prefix(gists)
    assert "2 rows, k = 1, 2 layers of float32" in repr(prefix)
    with pytest.raises(ValueError, match="holds one gist cache, but there are 2"):
        prefix.save_mlx(tmp_path / "x")
    with pytest.raises(ValueError, match="stand beyond the model's 96 positions"):
        far = dataclasses.replace(gists.memory, positions=gists.memory.positions + 4000)
        lm.rebase(dataclasses.replace(gists, memory=far, offset=gists.offset + 4000))


def test_a_prefix_is_a_file(lm, workdir, tmp_path, monkeypatch, capsys):
    file, made = tmp_path / "x.gist.safetensors", tmp_path / "made.safetensors"
    gists = lm.compress(INSTRUCTIONS)
    gists.save(file)
    arguments = "prefix", f"--gist={file}", f"--model={workdir}", f"--output={made}"
    if lm.config.is_encoder_decoder:
        assert "take no cache" in mistake(convert, monkeypatch, capsys, *arguments)
        return
    assert "is written" in command(convert, monkeypatch, capsys, *arguments)
    tensors = load_file(made)
    assert tensors["keys"].shape == tensors["values"].shape == (2, 2, 2, 1, 8)
    np.testing.assert_array_equal(tensors["values"][1], gists.memory.cache.values[1])
    assert tensors["attention_mask"].tolist() == [[1], [1]]
