"""In from Hugging Face format and out again: every family gives back the bytes that it was given."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TESTS
from safetensors.numpy import load_file

from gist_jax.data.tokenization import train_bpe
from gist_jax.interop.export import export
from gist_jax.interop.huggingface import Checkpoint
from gist_jax.models import registry
from gist_jax.models.config import LlamaConfig, T5Config
from gist_jax.training.step import StepConfig, logits

LLAMA = dict(vocab_size=300, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4)
LLAMA |= dict(num_kv_heads=2, head_dim=8, max_positions=64)
T5 = dict(vocab_size=300, hidden_size=16, intermediate_size=24, num_layers=3, num_decoder_layers=2)
T5 |= dict(num_heads=2, head_dim=8)
CONFIGS = {
    "llama": LlamaConfig(**LLAMA),
    "llama, tied": LlamaConfig(**LLAMA, tie_embeddings=True),
    "llama3": LlamaConfig(**LLAMA, rope_scaling="llama3", rope_factor=8.0, rope_theta=5e5),
    "linear": LlamaConfig(**LLAMA, rope_scaling="linear", rope_factor=2.0),
    "dynamic": LlamaConfig(**LLAMA, rope_scaling="dynamic", rope_factor=2.0),
    "mistral": LlamaConfig(**LLAMA, kind="mistral"),
    "qwen2": LlamaConfig(**LLAMA, kind="qwen2"),
    "qwen3": LlamaConfig(**LLAMA, kind="qwen3"),
    "t5 v1.0": T5Config(**T5),
    "t5 v1.1": T5Config(**T5, gated_gelu=True, tie_embeddings=False, scale_outputs=False),
    "t5, tied but not scaled": T5Config(**T5, gated_gelu=True, scale_outputs=False),
}


OTHER_DTYPES = [("llama", "float32"), ("llama", "float16"), ("t5 v1.1", "float32")]


@pytest.mark.parametrize(("name", "dtype"), [*((n, "bfloat16") for n in CONFIGS), *OTHER_DTYPES])
def test_export_then_import(name, dtype, tmp_path):
    """The same configuration, and the same parameters rounded to the dtype."""
    config = CONFIGS[name]
    shapes, rng = (
        jax.eval_shape(lambda: registry.init(config, jax.random.key(0))),
        np.random.default_rng(0),
    )
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    settings = dict(num_gist_tokens=2, condition="gist", dtype=dtype)
    export(tmp_path / "out", params, config, train_bpe(["a"], 260), **settings, shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    checkpoint = Checkpoint(tmp_path / "out")
    assert checkpoint.config == config
    assert checkpoint.fields["gist"] == {
        "format": 1,
        "num_gist_tokens": 2,
        "gist_token_id": 260,
        "condition": "gist",
        "template": "paper",
    }
    again = checkpoint.load(dtype)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(dtype))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def tensors_of(directory):
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


GOLDEN = [TESTS / "golden" / name for name in ("llama", "t5")]
FAMILIES = sorted((TESTS / "golden" / "families").iterdir())


@pytest.mark.parametrize("source", FAMILIES, ids=lambda path: path.name)
def test_logits_of_transformers(source):
    """Golden results of PyTorch, see tests/golden/make_families.py."""
    golden, checkpoint = np.load(source / "logits.npz"), Checkpoint(source)
    batch = {"tokens": golden["input_ids"], "segment": np.ones_like(golden["input_ids"])}
    if "decoder_input_ids" in golden:
        batch["decoder_tokens"] = golden["decoder_input_ids"]
        batch["decoder_segment"] = np.ones_like(batch["decoder_tokens"])
    step_config = StepConfig("pos_control", checkpoint.config.vocab_size)
    run = jax.jit(logits, static_argnums=(1, 2))
    ours = run(checkpoint.load("float32"), checkpoint.config, step_config, batch)
    np.testing.assert_allclose(ours, golden["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("source", [*GOLDEN, *FAMILIES], ids=lambda path: path.name)
def test_import_then_export(source, tmp_path):
    """What transformers has written comes out byte for byte, and describes the same model."""
    checkpoint = Checkpoint(source)
    params = checkpoint.load("float32")
    settings = dict(num_gist_tokens=1, condition="gist")
    export(tmp_path / "out", params, checkpoint.config, train_bpe(["a"], 260), **settings)
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.tobytes() == after[name].tobytes()
    assert Checkpoint(tmp_path / "out").config == checkpoint.config
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["model_type"] == checkpoint.fields["model_type"]
