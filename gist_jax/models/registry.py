"""The families of models there are; everything outside gist_jax.models chooses among them here.

Parameters are nested dicts of arrays everywhere but in the model files.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gist_jax.models.adapter import Adapter, AdapterConfig, add_adapter, only_adapter, united
from gist_jax.models.config import LlamaConfig, ModelConfig, T5Config
from gist_jax.models.layers import Projection
from gist_jax.models.llama import Llama
from gist_jax.models.model import Model
from gist_jax.models.stack import Params, is_stacked, is_transposed
from gist_jax.models.t5 import T5


class Family(NamedTuple):
    """A family of models: the class of its configurations and that of its modules."""

    config: type[ModelConfig]
    module: Callable[..., nnx.Module]  # of a configuration, dtype, whether stacked, and rngs


# Name -> family. A configuration names its own: `config.family`.
FAMILIES = {"llama": Family(LlamaConfig, Llama), "t5": Family(T5Config, T5)}


def init(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters with stacked layers: nested dict of arrays of `dtype`."""
    module = FAMILIES[config.family].module
    model = module(config, dtype, stacked=True, rngs=nnx.Rngs(params=key))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def init_adapter(config: ModelConfig, adapter: AdapterConfig, key: jax.Array) -> Params:
    """The parameters of an adapter beside stacked layers, float32, which changes nothing yet.

    The second of every pair is 0, and so is the gist token's embedding, which is to be given one.
    """
    model = FAMILIES[config.family].module(config, jnp.float32, stacked=True, rngs=nnx.Rngs(params=0))
    add_adapter(model, adapter, nnx.Rngs(params=key))
    return only_adapter(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def merge(params: Params, config: ModelConfig, adapter: Adapter | None = None) -> Model:
    """The model of parameters, whose layers are stacked (for `forward`) or unrolled (for all else).

    Kernels may be as `Projection.transpose` leaves them.
    """
    form = is_stacked(params), is_transposed(params)
    if adapter is None:
        return nnx.merge(_abstract(config, *form)[0], params)
    structure, _ = _abstract(config, *form, adapter.config)
    return nnx.merge(structure, united(params, adapter.params))


@functools.lru_cache
def _abstract(
    config: ModelConfig, stacked: bool, transposed: bool, adapter: AdapterConfig | None = None
) -> tuple[Any, Any]:
    """Structure and abstract state of a model, without computing a single parameter."""

    def make() -> nnx.Module:
        rngs = nnx.Rngs(params=0)
        model = FAMILIES[config.family].module(config, jnp.float32, stacked, rngs)
        if adapter is not None:
            add_adapter(model, adapter, rngs)
        for _, module in nnx.iter_modules(model) if transposed else ():
            if isinstance(module, Projection):
                module.transpose()
        return model

    return nnx.split(nnx.eval_shape(make))


def logical_axes(
    config: ModelConfig,
    stacked: bool = True,
    adapter: AdapterConfig | None = None,
    transposed: bool = False,
) -> Params:
    """The logical axis of every dimension of every parameter: nested dict of tuples of str.

    Args:
      stacked: whether layers are stacked, and have a name for that dimension, or unrolled.
      adapter: of this one, in place of the model.
      transposed: whether kernels are as `Projection.transpose` leaves them.
    """

    def axes(path: tuple[Any, ...], parameter: nnx.Variable) -> tuple[str, ...]:
        layered = stacked and any(getattr(key, "key", None) == "layers" for key in path)
        return (*(("layers",) if layered else ()), *parameter.get_metadata()["axes"])

    _, state = _abstract(config, stacked, transposed, adapter)
    named = jax.tree_util.tree_map_with_path(axes, state, is_leaf=lambda p: isinstance(p, nnx.Variable))
    named = nnx.to_pure_dict(named)
    return named if adapter is None else only_adapter(named)
