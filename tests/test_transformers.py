"""Equality with random models of the installed transformers, where PyTorch is installed."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
from commands import command
from random_models import DECODERS, GIST, random_decoder, random_t5, torch

from gist_jax import gist
from gist_jax.benchmark import against_transformers, latency
from gist_jax.data.tokenization import train_bpe
from gist_jax.interop.export import export
from gist_jax.interop.huggingface import Checkpoint
from gist_jax.training.step import StepConfig, logits

CONTROLS = gist.CONDITIONS[1:]  # whose masks are the same in all models


@pytest.mark.parametrize(
    ("version", "untied", "condition"),
    [
        *(("v1.0", False, "gist"), ("v1.1", False, "gist"), ("v1.1", True, "gist")),
        *(("v1.1", True, condition) for condition in CONTROLS),
    ],
)
def test_t5(version, untied, condition, tmp_path):
    """Logits for the same encoder mask `[B, T, T]` and cross-attention mask `[B, T]`.

    Prompts are ragged, and longer than the distance from which on relative positions are all alike.
    """
    model = random_t5(version, untied)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = Checkpoint(tmp_path / "theirs")
    assert checkpoint.config.tie_embeddings == (not untied)
    assert checkpoint.config.scale_outputs == (version == "v1.0")

    rng = np.random.default_rng(0)
    tokens, written = rng.integers(3, GIST, (3, 300)), rng.integers(3, GIST, (3, 150))
    tokens[:, 170:172] = GIST
    segment = (np.arange(300) < np.array([300, 172, 240])[:, None]).astype(np.int32)
    batch = {"tokens": tokens, "segment": segment}
    batch |= {"decoder_tokens": written, "decoder_segment": np.ones_like(written)}
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
    params = checkpoint.load("float32")
    ours = logits(params, checkpoint.config, StepConfig(condition, GIST), batch)

    layout = gist.layout_of(batch["tokens"], GIST, batch["segment"])
    mask = np.array(gist.attention_mask(layout, condition, bidirectional=True))
    decoder = gist.following(layout, batch["decoder_segment"])
    seen = np.array(gist.visible(decoder, layout, condition))[:, 0, 0]  # the same in every row
    with torch.no_grad():
        bias = torch.from_numpy(mask).float().sub(1).mul(1e9)
        states = model.encoder(input_ids=torch.from_numpy(tokens), attention_mask=bias)
        theirs = model(
            encoder_outputs=states,
            attention_mask=torch.from_numpy(seen).long(),
            decoder_input_ids=torch.from_numpy(written),
        ).logits
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    if condition == "gist":
        assert_exports(params, checkpoint, model, tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "condition"),
    [*((name, "gist") for name in DECODERS), *(("llama", condition) for condition in CONTROLS)],
)
def test_decoders(name, condition, tmp_path):
    """Logits for the same mask, and the same tensors after import and export."""
    model = random_decoder(name)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = Checkpoint(tmp_path / "theirs")
    params = checkpoint.load("float32")
    tokens = np.random.default_rng(0).integers(3, GIST, (2, 60))
    tokens[:, 20:22] = GIST
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in tokens_and_segment(tokens).items()}
    ours = logits(params, checkpoint.config, StepConfig(condition, GIST), batch)
    layout = gist.layout_of(batch["tokens"], GIST, batch["segment"])
    bias = torch.from_numpy(np.array(gist.attention_mask(layout, condition))).float().sub(1).mul(1e9)
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens), attention_mask=bias).logits
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    if condition == "gist":
        assert_exports(params, checkpoint, model, tmp_path / "ours")


def tokens_and_segment(tokens):
    return {"tokens": tokens, "segment": np.ones_like(tokens)}


def assert_exports(params, checkpoint, model, directory):
    """transformers loads what we write, with not one warning of a tensor, and has the same weights."""
    settings = dict(num_gist_tokens=1, condition="gist", shard_bytes=30_000)
    export(directory, params, checkpoint.config, train_bpe(["a"], 260), **settings)
    again, info = type(model).from_pretrained(directory, output_loading_info=True, dtype="auto")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    assert again.config.gist["gist_token_id"] == 260


CONFIG = """
from gist_jax.training.config import default

def get_config():
    config = default()
    config.dtype = "float32"
    config.model.update(vocab_size=260, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2)
    config.model.update(num_kv_heads=2, head_dim=8, initializer_range=0.3)
    return config
"""


def test_all_tasks_are_compared(tmp_path, monkeypatch, capsys):
    """Both write the same tokens and have the same losses. So few tokens take any time on a busy
    machine: here a second each.
    """

    def seconds(runs, rounds, tick):
        latency.interleaved(runs, rounds, tick)
        ours = against_transformers.OURS
        times = {run: 1.0 if ours in (run, run[0]) else 3.0 for run in runs}
        return {run: np.full(rounds, times[run] * (run[1] if len(run) == 2 else 1)) for run in runs}

    monkeypatch.setattr(against_transformers, "interleaved", seconds)
    monkeypatch.setattr(against_transformers, "REQUESTS", 5)
    made, config = tmp_path / "made.csv", tmp_path / "config.py"
    config.write_text(CONFIG)
    sizes = (
        f"--config={config}",
        "--shapes=2x9",
        "--batch=1,2",
        "--prompt=5",
        "--output_tokens=4",
        "--rounds=2",
    )
    text = command(against_transformers, monkeypatch, capsys, *sizes, f"--output={made}")
    assert "losses within" in text and "100.0% of tokens" in text
    rows = list(csv.DictReader(made.open()))
    assert [row["task"] for row in rows[::2]] == ["train", "prefill", *["decode"] * 2, *["requests"] * 2]
    for row in rows:
        assert float(row["speedup"]) == (1 if row["implementation"] == "gist_jax" else 3)
        agreement = float(row["agreement"])
        assert agreement < 1e-5 if row["task"] == "train" else agreement == 1
