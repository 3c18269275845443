"""The families of models there are; everything outside gist_jax.models chooses among them here.

Parameters are nested dicts of arrays everywhere but in the model files.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from gist_jax.models.config import LlamaConfig, ModelConfig, T5Config
from gist_jax.models.llama import Llama
from gist_jax.models.model import Model
from gist_jax.models.stack import Params, is_stacked
from gist_jax.models.t5 import T5

# Name -> configuration.
FAMILIES: dict[str, type] = {"llama": LlamaConfig, "t5": T5Config}
_MODULES = {LlamaConfig: Llama, T5Config: T5}


def name_of(config: ModelConfig) -> str:
    """Name in FAMILIES."""
    return next(name for name, kind in FAMILIES.items() if isinstance(config, kind))


def init(config: ModelConfig, key: jax.Array, dtype=jnp.float32) -> Params:
    """Random parameters with stacked layers: nested dict of arrays of `dtype`."""
    model = _MODULES[type(config)](config, dtype, stacked=True, rngs=nnx.Rngs(params=key))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def merge(params: Params, config: ModelConfig) -> Model:
    """The model of parameters, whose layers are stacked (for `forward`) or apart (for all else)."""
    return nnx.merge(_abstract(config, is_stacked(params))[0], params)


@functools.lru_cache
def _abstract(config: ModelConfig, stacked: bool):
    """Structure and abstract state of a model, without computing a single parameter."""
    module = _MODULES[type(config)]
    return nnx.split(nnx.eval_shape(lambda: module(config, jnp.float32, stacked, nnx.Rngs(params=0))))


def logical_axes(config: ModelConfig, stacked: bool = True) -> Params:
    """The name of every dimension of every parameter: nested dict of tuples of str.

    Args:
      stacked: whether layers are stacked, and have a name for that dimension, or apart.
    """

    def axes(path, parameter):
        layered = stacked and any(getattr(key, "key", None) == "layers" for key in path)
        return (*(("layers",) if layered else ()), *parameter.get_metadata()["axes"])

    _, state = _abstract(config, stacked)
    named = jax.tree_util.tree_map_with_path(axes, state, is_leaf=lambda p: isinstance(p, nnx.Variable))
    return nnx.to_pure_dict(named)
