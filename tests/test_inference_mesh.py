"""Models whose parameters several devices share write what they write on one, and send no parameter."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from commands import INPUTS, INSTRUCTIONS
from tiny import TINY

import gist_jax
from gist_jax.cost_model.collectives import bytes_sent, collectives
from gist_jax.data import instructions
from gist_jax.data.tokenization import SPECIAL_TOKENS, from_tokenizers
from gist_jax.errors import UserError
from gist_jax.inference.decode import first_token, next_token
from gist_jax.inference.language_model import LanguageModel
from gist_jax.models import registry
from gist_jax.models.adapter import Adapter, AdapterConfig
from gist_jax.sharding import for_writing, in_mesh, make_mesh

SHARDS = (2, 4, 8)
# Eight heads; of the decoder-only model two key/value heads, fewer than devices.
HEADS = dict(num_heads=8, head_dim=8)


llama_alone = pytest.mark.parametrize("model_family", ["llama"], indirect=True)


@pytest.fixture(scope="module")
def directory(model_family, tmp_path_factory):
    """A random model in Hugging Face format, whose vocabulary divides over no mesh."""
    tokenizer = from_tokenizers(instructions.load_tokenizer(), SPECIAL_TOKENS)
    vocab_size = tokenizer.vocab_size + 1 - tokenizer.vocab_size % 2
    config = dataclasses.replace(TINY[model_family], vocab_size=vocab_size, **HEADS)
    params = registry.init(config, jax.random.key(3))
    path = tmp_path_factory.mktemp("model") / "hf"
    LanguageModel.from_params(params, config, tokenizer, num_gist_tokens=2).export(path)
    return path


@pytest.fixture(scope="module")
def alone(directory):
    return gist_jax.load(directory)


@functools.cache
def on_mesh(path, **mesh):
    return gist_jax.load(path, mesh=mesh)


def close(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=5e-5)


OPTIONS = dict(inputs=INPUTS, max_new_tokens=6)
BOTH = {"data": 2, "tensor": 4}
MESHES = {"llama": [*({"tensor": n} for n in SHARDS), BOTH], "t5": [{"tensor": 2}, {"tensor": 8}, BOTH]}


@pytest.mark.parametrize(
    ("model_family", "mesh"),
    [(family, mesh) for family, meshes in MESHES.items() for mesh in meshes],
    indirect=["model_family"],
    ids=str,
)
def test_a_mesh_writes_what_one_device_writes(directory, alone, mesh):
    model = on_mesh(directory, **mesh)
    gists, expected = model.compress(INSTRUCTIONS), alone.compress(INSTRUCTIONS)
    assert gists.origin == expected.origin  # the fingerprint
    close(gists, expected)
    outputs = alone.generate(expected, **OPTIONS)
    assert len(set(outputs)) > 1
    assert model.generate(gists, **OPTIONS) == outputs


def test_caches_of_any_mesh_serve_on_any_other(directory, alone):
    model, gists = on_mesh(directory, tensor=8), alone.compress(INSTRUCTIONS)
    outputs = alone.generate(gists, **OPTIONS)
    assert model.generate(gists, **OPTIONS) == outputs
    assert alone.generate(model.compress(INSTRUCTIONS), **OPTIONS) == outputs


@llama_alone
def test_all_that_a_mesh_writes(directory, alone):
    model, gists = on_mesh(directory, tensor=8), alone.compress(INSTRUCTIONS)
    for more in (dict(temperature=0.8, top_k=7, top_p=0.9, seed=5), dict(instructions=INSTRUCTIONS)):
        first = () if "instructions" in more else (gists,)
        assert model.generate(*first, **OPTIONS, **more) == alone.generate(*first, **OPTIONS, **more)
    again = INSTRUCTIONS[::-1]
    close(model.compress(again, after=gists), alone.compress(again, after=gists))
    asked = [gist_jax.Request(text, gist=gists[i], max_new_tokens=6) for i, text in enumerate(INPUTS)]
    written = sorted(result.text for result in model.generate_many(asked, slots=4))
    assert written == sorted(alone.generate(gists, **OPTIONS))
    lost, expected = (each.fidelity(INSTRUCTIONS, INPUTS, max_new_tokens=4) for each in (model, alone))
    np.testing.assert_allclose([x.kl for x in lost], [x.kl for x in expected], atol=1e-4)


@llama_alone
def test_an_adapter_acts_on_a_mesh(directory, alone):
    shape = AdapterConfig(rank=2)
    params = registry.init_adapter(alone.config, shape, jax.random.key(1))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    drawn = [0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    adapter = Adapter(jax.tree.unflatten(structure, drawn), shape)
    here, there = alone.with_adapter(adapter), on_mesh(directory, tensor=8).with_adapter(adapter)
    expected, found = here.compress(INSTRUCTIONS), there.compress(INSTRUCTIONS)
    assert found.origin == expected.origin
    assert found.origin.adapter
    np.testing.assert_allclose(found.memory.cache.keys[1], expected.memory.cache.keys[1], atol=2e-5)
    plain = alone.compress(INSTRUCTIONS).memory.cache.keys[1]
    assert np.abs(plain - expected.memory.cache.keys[1]).max() > 0.01


@llama_alone
def test_exports_and_what_a_model_says_do_not_depend_on_the_mesh(directory, alone, tmp_path):
    model = on_mesh(directory, tensor=8)
    model.export(tmp_path / "again")
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes()
    assert repr(model) == repr(alone)


@pytest.mark.parametrize("shards", SHARDS)
def test_a_decode_step_sends_activations_alone(directory, shards):
    model = on_mesh(directory, tensor=shards)
    config, rows = model.config, np.ones((4, 16), np.int32)
    settings = dict(config=config, condition="gist", gist_token=model.tokenizer.gist_id, max_new=8)
    with in_mesh(model.mesh):
        begun = jax.jit(functools.partial(first_token, **settings))(model.params, rows, rows, None)
        step = jax.jit(functools.partial(next_token, config=config), donate_argnums=2)
        found = collectives(step.lower(model.params, *begun).compile().as_text())
    # Hidden states [B, 1, D] are summed after the embedding and after every part of a layer; of every
    # part of the vocabulary the likeliest token [B] and its logit are sent, four bytes each.
    parts = 3 if config.is_encoder_decoder else 2
    layers = config.num_decoder_layers if config.is_encoder_decoder else config.num_layers
    expected = [("all-reduce", len(rows) * config.hidden_size * 4)] * (1 + parts * layers)
    expected += [("all-gather", shards * len(rows) * 4)] * 2
    assert sorted((c.kind, c.bytes) for c in found) == sorted(expected, key=lambda x: x)
    assert {(c.group_size, c.times) for c in found} == {(shards, 1)}
    ring = 2 * (len(expected) - 2) * len(rows) * config.hidden_size * 4 * (shards - 1) // shards
    assert sum(map(bytes_sent, found)) == ring + 2 * (shards - 1) * len(rows) * 4


def test_parameters_lie_in_equal_parts(directory):
    model = on_mesh(directory, tensor=8)
    total = sum(x.nbytes for x in jax.tree.leaves(model.params))
    of_one = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(model.params))
    norms = sum(x.nbytes for x in jax.tree.leaves(model.params) if x.ndim == 1)
    assert of_one == (total - norms) // 8 + norms


def test_a_run_writes_with_what_divides_its_heads():
    mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    assert dict(for_writing(mesh, 32, 48).shape) == {"data": 1, "fsdp": 1, "tensor": 8}
    assert dict(for_writing(mesh, 12, 48).shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    assert dict(for_writing(mesh, 7, 48).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    split = for_writing(make_mesh({"data": 4, "fsdp": 2, "tensor": 1}), 32, 48)
    assert dict(split.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert split.devices.flatten().tolist() == mesh.devices.flatten().tolist()


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"tensor": 3}, "heads of the model do not divide over the 3 devices"),
        ({"tensor": 16}, r"the mesh \(tensor 16\) does not fit the 8 device"),
        ({"tensor": 0}, r"the mesh \(tensor 0\) does not fit"),
        ({"heads": 2}, "a mesh has the axes data, fsdp, tensor, not heads"),
    ],
)
@llama_alone
def test_a_mesh_that_does_not_fit_is_refused(directory, mesh, message):
    with pytest.raises(UserError, match=message):
        gist_jax.load(directory, mesh=mesh)
