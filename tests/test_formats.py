"""Files that users keep: examples of every format load for ever, and damaged ones are refused."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.flax import save_file

import gist_jax
from gist_jax.errors import UserError
from gist_jax.inference.fingerprint import base_fingerprint
from gist_jax.models.config import LlamaConfig
from gist_jax.training import config as training_config
from gist_jax.training import validation
from gist_jax.training.loop import train
from gist_jax.training.run import prepare
from gist_jax.workdir import MODEL, read_metrics

EXAMPLES = pathlib.Path(__file__).parent / "examples"


@pytest.fixture(scope="session")
def examples():
    """The script that made the examples."""
    spec = importlib.util.spec_from_file_location("make_examples", EXAMPLES / "make_examples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stopped(tmp_path):
    """A copy of the workdir of a run that was stopped."""
    shutil.copytree(EXAMPLES / "llama" / "workdir", tmp_path / "run")
    return tmp_path / "run"


def test_examples_load(model_family, examples):
    folder = EXAMPLES / model_family
    gists = gist_jax.GistCache.load(folder / "two.gist.safetensors")
    assert gists.instructions == tuple(examples.INSTRUCTIONS) and gists.num_gist_tokens == 1
    for model in ("workdir", "export"):
        lm = gist_jax.load(folder / model)
        assert (lm.condition, lm.num_gist_tokens) == ("gist", 1)
        assert gists.origin == lm.origin
        made = lm.compress(examples.INSTRUCTIONS)
        for ours, theirs in zip(jax.tree.leaves(made), jax.tree.leaves(gists), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert len(lm.generate(gists, inputs=["a", "b"], max_new_tokens=2)) == 2


def test_example_adapters_load(model_family, examples):
    folder = EXAMPLES / model_family
    lm = gist_jax.load(folder / "adapter", base=folder / "workdir")
    assert lm.gist_token_choices == (1, 2) and lm.adapter.config.rank == 2
    gists = lm.compress(examples.INSTRUCTIONS)
    assert gists.num_gist_tokens == 2
    bare = gist_jax.load(folder / "workdir")
    settings = dict(inputs=["a", "b"], max_new_tokens=2)
    texts = lm.generate(gists, **settings)
    assert bare.generate(gists, **settings) == texts
    assert lm.generate(instructions=examples.INSTRUCTIONS, **settings) == texts


def test_example_masks_load(model_family, examples):
    """Of a directory in Hugging Face format, and of an adapter."""
    folder = EXAMPLES / model_family
    for lm in (
        gist_jax.load(folder / "masked"),
        gist_jax.load(folder / "masked_adapter", base=folder / "workdir"),
    ):
        assert lm.mask == examples.MASKS[model_family]
        gists = lm.compress(examples.INSTRUCTIONS)
        assert gists.num_gist_tokens == lm.num_gist_tokens + lm.mask.extra
        if lm.mask.placement == "before":
            with pytest.raises(UserError, match="do not stand in one run"):
                lm.rebase(gists)


def add_field(monkeypatch):
    """As a later version will do it: a new field of the config, and one of the model's shape."""
    usual = training_config.default

    def with_new_field(*family):
        config = usual(*family)
        with config.unlocked():
            config.data.new_field = "usual"
        return config

    for module in (training_config, validation):
        monkeypatch.setattr(module, "default", with_new_field)


def test_a_new_field_does_not_stop_a_resume(stopped, examples, monkeypatch):
    before = read_metrics(stopped)
    add_field(monkeypatch)
    config = examples.config("llama")
    with config.unlocked():
        config.data.new_field = "changed"
    with pytest.raises(UserError, match="holds a run whose config.data.new_field is 'usual'"):
        prepare(config, stopped)
    config.data.new_field = "usual"
    train(prepare(config, stopped))
    lines = read_metrics(stopped)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[:2] == before  # it began after step 2


def test_a_new_field_changes_no_fingerprint(model_family):
    lm = gist_jax.load(EXAMPLES / model_family / "workdir")
    known = base_fingerprint(lm.params, lm.config)

    @dataclasses.dataclass(frozen=True)
    class Later(type(lm.config)):
        new_field: str = "usual"

    fields = dataclasses.asdict(lm.config)
    assert base_fingerprint(lm.params, Later(**fields)) == known
    assert base_fingerprint(lm.params, Later(**fields, new_field="changed")) != known
    assert base_fingerprint(lm.params, dataclasses.replace(lm.config, norm_eps=1e-3)) != known


def test_a_newer_workdir_is_refused(stopped, examples):
    described = json.loads((stopped / MODEL).read_text())
    (stopped / MODEL).write_text(json.dumps(described | {"format": 4}))
    sentence = "has format 4, but this version of gist_jax reads formats 1 to 3"
    with pytest.raises(UserError, match=sentence):
        gist_jax.load(stopped)
    with pytest.raises(UserError, match=sentence):
        prepare(examples.config("llama"), stopped)


@pytest.mark.parametrize(
    "said",
    [
        *(3, {"format": 3}, {"num_gist_tokens": "1"}, {"condition": "gits"}),
        *({"mask": {"extra": -1}}, {"mask": {"later": 1}}, {"mask": {"placement": "beside"}}),
    ],
)
def test_a_newer_export_is_refused(said, tmp_path):
    shutil.copytree(EXAMPLES / "llama" / "export", tmp_path / "export")
    file = tmp_path / "export" / "config.json"
    fields = json.loads(file.read_text())
    gist = fields["gist"] | said if isinstance(said, dict) else said
    file.write_text(json.dumps(fields | {"gist": gist}))
    with pytest.raises(UserError, match="the field gist of config.json"):
        gist_jax.load(tmp_path / "export")


def test_parameters_that_do_not_match_their_description(stopped):
    """One parameter is named, in a sentence that can be read."""
    described = json.loads((stopped / MODEL).read_text())
    described["config"]["hidden_size"] *= 2
    (stopped / MODEL).write_text(json.dumps(described))
    with pytest.raises(
        UserError, match=r"does not describe its checkpoint: .* has shape \(.*\) there, not"
    ):
        gist_jax.load(stopped)
    described["config"]["num_layers"] = -1
    (stopped / MODEL).write_text(json.dumps(described))
    with pytest.raises(UserError, match="num_layers of a model must be at least 1") as error:
        gist_jax.load(stopped)
    assert len(str(error.value)) < 400


def replaced(index, value):
    return lambda x: x.at[index].set(value)


# What is wrong, by tensor: how it is changed, and what is said of it.
DAMAGE = {
    "a head is missing": ("keys", lambda x: x[:, :, :-1], "its values of shape .* with .*K = "),
    "another head dimension": ("values", lambda x: x[..., :-1], "its values of shape"),
    "a layer is missing": ("values", lambda x: jnp.concatenate([x, x]), "its values of shape"),
    "another batch": ("values", lambda x: x[:, :1], "its values of shape"),
    "int32 keys": ("keys", lambda x: x.astype("int32"), "its keys are of type int32"),
    "64 bits": ("positions", lambda x: np.asarray(x, np.int64), "its positions are I64"),
    "NaN": ("keys", replaced((0, 0, 0, 0, 0), jnp.nan), "its keys are not all finite"),
    "infinite": ("values", replaced((0, 1, 0, 0, 0), jnp.inf), "its values are not all finite"),
    "another dtype": ("values", lambda x: x.astype("bfloat16"), "are not of one type"),
    "segment of another shape": ("segment", lambda x: x[:1], "its segment of shape"),
    "span of another shape": ("span", lambda x: x[:, :, None], "its span of shape"),
    "float span": ("span", lambda x: x.astype("float32"), "its span are of type float32"),
    "no gist token": ("segment", lambda x: x * 0, "do not describe gist tokens"),
    "no such segment": ("segment", lambda x: x + 1, "do not describe gist tokens"),
    "positions without a batch": ("positions", lambda x: x[0], "its positions of shape"),
    "positions after the offset": ("positions", lambda x: x + 99, "its positions are not between"),
    "a negative offset": ("offset", lambda x: -x, "its positions are not between"),
    "no rows": ("offset", lambda x: x[:0], "its offset of shape"),
    "an unknown tensor": ("more", lambda x: jnp.zeros(1), "its tensor more is not known"),
    "a missing tensor": ("keys", None, "it has no tensor keys"),
}


@pytest.fixture(scope="module")
def gist_file():
    """Tensors and metadata of an example."""
    with safe_open(EXAMPLES / "llama" / "two.gist.safetensors", framework="flax") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_gist_caches(damage, gist_file, tmp_path):
    tensors, metadata = gist_file
    name, change, sentence = DAMAGE[damage]
    changed = {k: x for k, x in tensors.items() if k != name}
    if change is not None:
        changed[name] = change(tensors.get(name))
    save_file(changed, tmp_path / "x", metadata)
    with pytest.raises(UserError, match=f"is not a sound gist cache: .*{sentence}"):
        gist_jax.GistCache.load(tmp_path / "x")


@pytest.mark.parametrize(
    ("described", "sentence"),
    [
        ("{", "cannot read the gist cache"),
        ("[]", "cannot read the gist cache"),
        ({"num_gist_tokens": 2}, "it says that k is 2, but holds 1"),
        ({"instructions": ["a"]}, "it names 1 instructions for 2 rows"),
        ({"instructions": [1, 2]}, "it names 2 instructions for 2 rows"),
        ({"origin": {"base": 1, "tokenizer": ""}}, "it does not say what made it"),
        ({"origin": {"basis": ""}}, "cannot read the gist cache"),
    ],
)
def test_damaged_descriptions_of_gist_caches(described, sentence, gist_file, tmp_path):
    tensors, metadata = gist_file
    if isinstance(described, dict):
        described = json.dumps(json.loads(metadata["gist_cache"]) | described)
    save_file(tensors, tmp_path / "x", metadata | {"gist_cache": described})
    with pytest.raises(UserError, match=sentence):
        gist_jax.GistCache.load(tmp_path / "x")
    save_file(tensors, tmp_path / "x", metadata | {"format": "gist_jax/4"})
    with pytest.raises(UserError, match="is not a gist cache of format gist_jax/3"):
        gist_jax.GistCache.load(tmp_path / "x")


def test_gist_caches_that_do_not_fit_the_model(model_family):
    """They say that the model made them, but have other shapes."""
    lm = gist_jax.load(EXAMPLES / model_family / "workdir")
    gists = lm.compress(["Say red."])
    memory = gists.memory
    cache = memory.cache
    states = jnp.ones((1, 1, 4))
    misfits = {
        "it has 2 layers, not 1": dict(
            cache=dataclasses.replace(cache, keys=cache.keys * 2, values=cache.values * 2)
        ),
        "it has 1 heads of 8 dimensions, not 2": dict(cache=jax.tree.map(lambda x: x[:, :1], cache)),
        "its states have 4 dimensions" if model_family == "t5" else "an encoder's states": dict(
            states=states
        ),
    }
    for sentence, change in misfits.items():
        misfit = dataclasses.replace(gists, memory=dataclasses.replace(memory, **change))
        with pytest.raises(UserError, match=f"the gist cache does not fit the model: .*{sentence}"):
            lm.generate(misfit, inputs=["x"])


def test_they_say_what_they_are(model_family):
    lm = gist_jax.load(EXAMPLES / model_family / "workdir")
    count = sum(x.size for x in jax.tree.leaves(lm.params))
    described = f"{model_family}, {count:,} parameters, float32, k = 1, gist"
    assert repr(lm) == f"LanguageModel({described})"
    gists = lm.compress(["Say red.", "Say tea."])
    assert repr(gists) == f"GistCache(2 instructions, k = 1, {gists.nbytes:,} bytes)"
    assert repr(gists[0]).startswith("GistCache(1 instruction, k = 1, ")


def test_config_of_a_model_has_defaults_for_what_is_new():
    """Only the sizes must be given, so that a description without a new field can be read."""
    required = {f.name for f in dataclasses.fields(LlamaConfig) if f.default is dataclasses.MISSING}
    assert required == {
        *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"),
        *("num_kv_heads", "head_dim", "max_positions"),
    }
