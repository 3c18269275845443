"""Every config that is shipped can be run, and describes the model it names."""

import math
import pathlib
import runpy

import jax
import pytest

from gist_jax.models import family
from gist_jax.training.config import validate
from gist_jax.training.run import model_config

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
# Parameters of the published checkpoints, whose vocabularies are padded to 32128.
NUM_PARAMETERS = {
    "flan_t5_small": 76_961_152,
    "flan_t5_base": 247_577_856,
    "flan_t5_large": 783_150_080,
    "flan_t5_xl": 2_849_757_184,
    "flan_t5_xxl": 11_135_332_352,
}


def load(name):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_a_config_is_valid(name):
    config = load(name)
    validate(config)
    model_config(config, 1000)


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_published_models(name):
    model = model_config(load(name), 32128)
    shapes = jax.eval_shape(lambda: family.init(model, jax.random.key(0)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == NUM_PARAMETERS[name]
