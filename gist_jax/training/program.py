"""What a run computes on its mesh, ready to be compiled, with the place of every array."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from gist_jax.data.rows import row_lengths
from gist_jax.models import registry
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params
from gist_jax.sharding import batch_sharding, param_shardings, replicated, with_shardings
from gist_jax.training.optimizer import make_optimizer, optimizer_shardings
from gist_jax.training.step import StepConfig, TrainState, summed_loss, train_step


class Program(NamedTuple):
    """The functions of a run under jit; call and lower them inside `jax.set_mesh(mesh)`."""

    mesh: Mesh
    params: Params  # ShapeDtypeStructs of the master weights, with shardings
    state: TrainState  # the same of all that a step changes
    batch: dict[str, jax.ShapeDtypeStruct]  # of a step
    create: Callable[[Params], TrainState]  # the first state; takes the parameters over
    step: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]
    loss_of_microbatch: Callable[[Params, dict[str, jax.Array]], jax.Array]

    @property
    def param_shardings(self) -> Any:
        """The sharding of every parameter."""
        return jax.tree.map(lambda x: x.sharding, self.params)

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of a batch's rows."""
        return self.batch["tokens"].sharding


def make_program(config: ConfigDict, model: ModelConfig, gist_token: int, mesh: Mesh) -> Program:
    """The program of a config for a model.

    Raises:
      UserError: if parameters or rows do not divide over the mesh.
    """
    accumulate = config.optimizer.accumulate
    of_batch = batch_sharding(mesh, config.data.batch_size, accumulate)
    everywhere = replicated(mesh)
    shapes = jax.eval_shape(lambda: registry.init(model, jax.random.key(0)))
    of_params = param_shardings(mesh, registry.logical_axes(model), shapes)
    optimizer = make_optimizer(config)
    of_optimizer = optimizer_shardings(mesh, optimizer, shapes, of_params)
    of_state = TrainState._make((everywhere, of_params, of_optimizer))  # shardings for arrays
    step_config = StepConfig(
        config.condition,
        gist_token,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        remat=config.remat,
        attention=config.attention,
        dropout=config.dropout,
        seed=config.seed,
    )
    settings: dict[str, Any] = dict(
        config=model, step_config=step_config, optimizer=optimizer, accumulate=accumulate
    )

    def create(params: Params) -> TrainState:
        return TrainState(jnp.int32(0), params, optimizer.init(params))

    def loss_of_microbatch(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        return summed_loss(params, model, step_config, jax.tree.map(lambda x: x[::accumulate], batch))

    return Program(
        mesh,
        with_shardings(shapes, of_params),
        with_shardings(jax.eval_shape(create, shapes), of_state),
        _batch(config, model, of_batch),
        jax.jit(create, donate_argnums=0, out_shardings=of_state),
        jax.jit(
            functools.partial(train_step, **settings),
            donate_argnums=0,
            out_shardings=(of_state, everywhere),
        ),
        jax.jit(loss_of_microbatch, out_shardings=everywhere),
    )


def _batch(
    config: ConfigDict, model: ModelConfig, sharding: NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch, see `training_batches`."""
    data = config.data
    lengths = row_lengths(model.is_encoder_decoder, data.max_length, data.max_output_length)
    return {
        name: jax.ShapeDtypeStruct(
            (data.batch_size, length),
            np.float32 if name == "weights" else np.int32,
            sharding=sharding,
        )
        for name, length in lengths.items()
    }
