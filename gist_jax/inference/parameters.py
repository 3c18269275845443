"""Parameters as training has them, made ready for inference: cast, unrolled, and laid out for a CPU."""

import functools
from typing import Any

import jax
from jax.sharding import Mesh

from gist_jax.models.config import ModelConfig
from gist_jax.models.registry import logical_axes
from gist_jax.models.stack import Params, transposed, unstacked
from gist_jax.sharding import param_shardings


def for_inference(params: Params, dtype: str, config: ModelConfig, mesh: Mesh | None) -> Params:
    """Casts stacked parameters once, unrolls their layers, and on a CPU transposes their kernels.

    Args:
      mesh: of the devices that share them, which split them as in training; None: one device.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    transposes, shardings = platform == "cpu", None
    if mesh is not None:
        axes = logical_axes(config, stacked=False, transposed=transposes)
        shapes = jax.eval_shape(functools.partial(_made, dtype=dtype, transposes=transposes), params)
        shardings = param_shardings(mesh, axes, shapes)
    return _compiled(shardings)(params, dtype=dtype, transposes=transposes)


def adapter_for_inference(params: Params, dtype: str) -> Params:
    """Casts the parameters of an adapter beside stacked layers, and unrolls these."""
    return _compiled(None)(params, dtype=dtype, transposes=False)


def _compiled(shardings: Any) -> Any:
    return jax.jit(_made, static_argnames=("dtype", "transposes"), out_shardings=shardings)


def _made(params: Params, dtype: str, transposes: bool) -> Params:
    # Of the module, so that every evaluation of a run finds it compiled.
    params = jax.tree.map(lambda x: x.astype(dtype), unstacked(params))
    return transposed(params) if transposes else params
