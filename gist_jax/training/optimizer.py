"""AdamW or Adafactor, with clipping and a schedule, from the config."""

from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gist_jax.models.stack import Params
from gist_jax.sharding import replicated


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Learning rate by update, from 0: linear warm-up, then a cosine to 0 or a constant."""
    options = config.optimizer
    peak, warmup = options.learning_rate, options.warmup_steps
    if options.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup else peak, peak, warmup, decay_steps=max(config.num_steps, warmup + 1)
        )
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, max(warmup, 1)), optax.constant_schedule(peak)], [warmup]
    )


def _decayed(params: Params) -> Params:
    """Which parameters weight decay applies to: all but the scales of norms and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in ("scale", "bias"), params
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The transformation that a train step applies to the gradient of the mean loss."""
    options = config.optimizer
    if options.name == "adamw":
        # Only the first moment may be rounded: the second changes by too little at a step.
        scale = optax.scale_by_adam(
            b1=options.b1, b2=options.b2, eps=options.eps, mu_dtype=options.moment_dtype
        )
    else:
        # Adafactor (arXiv 1804.04235) for finetuning: without first moment, and with steps as long as
        # AdamW's, not in proportion to the parameters, so that a learning rate means the same.
        scale = optax.chain(
            optax.scale_by_factored_rms(min_dim_size_to_factor=64), optax.clip_by_block_rms(1.0)
        )
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        scale,
        optax.add_decayed_weights(options.weight_decay, mask=_decayed),
        optax.scale_by_learning_rate(make_schedule(config)),
    )


def optimizer_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformation, shapes: Params, shardings: Any
) -> Any:
    """The sharding of every array of the optimizer's state.

    Moments lie where their parameters lie; counters, and Adafactor's sums over a dimension, which are
    small, on every device.

    Args:
      shapes: of the parameters, a tree of ShapeDtypeStructs.
      shardings: of the parameters, the same tree.
    """
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda state, param, sharding: sharding if state.shape == param.shape else replicated(mesh),
        jax.eval_shape(optimizer.init, shapes),
        shapes,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
