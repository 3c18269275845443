"""What a run computes on its mesh, ready to be compiled, with the place of every array."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from gist_jax.data.batching import row_lengths
from gist_jax.models import family
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params
from gist_jax.training import sharding
from gist_jax.training.optimizer import make_optimizer
from gist_jax.training.step import Objective, TrainState, summed_loss, train_step


class Program(NamedTuple):
    """Functions under jit; call and lower them inside `jax.set_mesh(mesh)`."""

    mesh: Mesh
    params: Params  # ShapeDtypeStructs of the master weights, with shardings
    state: TrainState  # the same of all that a step changes
    batch: dict[str, jax.ShapeDtypeStruct]  # of a step
    create: Callable[[Params], TrainState]  # the first state; takes the parameters over
    step: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]
    loss_of_microbatch: Callable[[Params, dict[str, jax.Array]], jax.Array]

    @property
    def params_on(self) -> Any:
        """The sharding of every parameter."""
        return jax.tree.map(lambda x: x.sharding, self.params)

    @property
    def rows_on(self) -> NamedSharding:
        """The sharding of a batch."""
        return self.batch["tokens"].sharding


def make_program(config: ConfigDict, model: ModelConfig, gist_token: int, mesh: Mesh) -> Program:
    """The program of a config for a model.

    Raises:
      UserError: if parameters or rows do not divide over the mesh.
    """
    rows_on = sharding.batch_sharding(mesh, config.data.batch_size, config.optimizer.accumulate)
    replicated = sharding.replicated(mesh)
    shapes = jax.eval_shape(lambda: family.init(model, jax.random.key(0)))
    params = sharding.placed(shapes, sharding.param_shardings(mesh, family.logical_axes(model), shapes))
    params_on = jax.tree.map(lambda x: x.sharding, params)
    optimizer = make_optimizer(config)
    moments_on = sharding.optimizer_shardings(mesh, optimizer, shapes, params_on)
    state_on = TrainState(replicated, params_on, moments_on)
    objective = Objective(
        config.condition,
        gist_token,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        remat=config.remat,
        attention=config.attention,
        dropout=config.dropout,
        seed=config.seed,
    )
    accumulate = config.optimizer.accumulate
    settings = dict(config=model, objective=objective, optimizer=optimizer, accumulate=accumulate)

    def create(params: Params) -> TrainState:
        return TrainState(jnp.int32(0), params, optimizer.init(params))

    def loss_of_microbatch(params: Params, batch) -> jax.Array:
        return summed_loss(params, model, objective, jax.tree.map(lambda x: x[::accumulate], batch))

    return Program(
        mesh,
        params,
        sharding.placed(jax.eval_shape(create, shapes), state_on),
        _batch(config, model, rows_on),
        jax.jit(create, donate_argnums=0, out_shardings=state_on),
        jax.jit(
            functools.partial(train_step, **settings),
            donate_argnums=0,
            out_shardings=(state_on, replicated),
        ),
        jax.jit(loss_of_microbatch, out_shardings=replicated),
    )


def _batch(config: ConfigDict, model: ModelConfig, rows_on) -> dict[str, jax.ShapeDtypeStruct]:
    """See `training_batches`."""
    data = config.data
    lengths = row_lengths(model.decoder_start_token, data.max_length, data.max_output_length)
    return {
        name: jax.ShapeDtypeStruct(
            (data.batch_size, length),
            np.float32 if name == "weights" else np.int32,
            sharding=rows_on,
        )
        for name, length in lengths.items()
    }
