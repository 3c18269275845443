"""Every config that is shipped can be run, and describes the model it names."""

import math
import runpy

import jax
import pytest
from jax.sharding import AbstractMesh

from gist_jax import cli
from gist_jax.errors import UserError
from gist_jax.models import registry
from gist_jax.sharding import MESH_AXES
from gist_jax.training.program import make_program
from gist_jax.training.recipes import MACHINES
from gist_jax.training.run import model_config
from gist_jax.training.validation import validate

# Vocabulary and parameters of the published checkpoints.
PUBLISHED = {
    "llama_7b": (32_000, 6_738_415_616),
    "llama_3_1_8b": (128_256, 8_030_261_248),
    "llama_3_2_1b": (128_256, 1_235_814_400),
    "qwen3_0_6b": (151_936, 596_049_920),
    "qwen3_8b": (151_936, 8_190_735_360),
    "mistral_7b": (32_768, 7_248_023_552),
    "flan_t5_small": (32_128, 76_961_152),
    "flan_t5_base": (32_128, 247_577_856),
    "flan_t5_large": (32_128, 783_150_080),
    "flan_t5_xl": (32_128, 2_849_757_184),
    "flan_t5_xxl": (32_128, 11_135_332_352),
}


def load(name, *machine):
    return runpy.run_path(str(cli.CONFIGS / f"{name}.py"))["get_config"](*machine)


@pytest.mark.parametrize("name", cli.config_names())
def test_a_config_is_valid(name):
    config = load(name)
    if config.adapter.rank:  # whose base the user names
        config.pretrained = "base"
    validate(config)
    model_config(config, 1000)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    config, (vocabulary, count) = load(name), PUBLISHED[name]
    assert config.model.vocab_size in (vocabulary, vocabulary + 1)  # with room for the gist token
    config.model.vocab_size = 0
    model = model_config(config, vocabulary)
    shapes = jax.eval_shape(lambda: registry.init(model, jax.random.key(0)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - {"flan_t5_small"}))
def test_a_config_for_a_machine(name, machine):
    """Its mesh has all chips, and rows and parameters divide over it."""
    config, chips = load(name, machine), MACHINES[machine][0]
    validate(config)
    mesh = AbstractMesh(tuple(config.mesh[axis] for axis in MESH_AXES), MESH_AXES)
    assert mesh.size == chips
    make_program(config, model_config(config, 1), 0, mesh)


def test_an_unknown_machine():
    with pytest.raises(ValueError, match="'v5e-65' is not one of the machines 4xA100-80GB, 8xH100"):
        load("llama_7b", "v5e-65")


def test_names_and_files(tmp_path, monkeypatch):
    """Outside of a checkout names are those of the package; a file that is there comes first."""
    monkeypatch.chdir(tmp_path)
    assert cli.load_config("quickstart", ["--config.seed=3"]).seed == 3
    ours = cli.load_config("configs/quickstart.py")
    assert ours.num_steps == cli.load_config("quickstart").num_steps == 1000
    assert cli.load_config("llama_7b:v5e-64").mesh.tensor == 4
    own = (
        "from gist_jax.configs.quickstart import get_config as ours\n"
        "def get_config():\n    config = ours()\n    config.num_steps = 7\n    return config\n"
    )
    (tmp_path / "configs").mkdir()
    for name in ("own.py", "configs/quickstart.py"):
        (tmp_path / name).write_text(own)
        assert cli.load_config(name).num_steps == 7
        assert cli.load_config(str(tmp_path / name)).num_steps == 7
    (tmp_path / "llama_7b").mkdir()  # a workdir, say
    assert cli.load_config("llama_7b").num_steps == load("llama_7b").num_steps


@pytest.mark.parametrize("name", ["quick", "", ":v5e-64", "__init__", "../quickstart.py", "a" * 999])
def test_a_config_that_is_not_there(name):
    with pytest.raises(UserError, match="there is no config file|--config is empty"):
        cli.load_config(name)
