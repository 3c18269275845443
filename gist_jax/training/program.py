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
from gist_jax.gist import AFTER
from gist_jax.models import registry
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params
from gist_jax.sharding import batch_sharding, param_shardings, replicated, with_shardings
from gist_jax.training.config import adapter_config, mask_config
from gist_jax.training.losses import LossConfig
from gist_jax.training.optimizer import make_optimizer, optimizer_shardings
from gist_jax.training.step import StepConfig, TrainState, summed_loss, train_step


class Program(NamedTuple):
    """The functions of a run under jit; call and lower them inside `jax.set_mesh(mesh)`."""

    mesh: Mesh
    params: Params  # ShapeDtypeStructs of the master weights, with shardings
    state: TrainState  # the same of all that a step changes
    # The same of the base of an adapter, or of the teacher in distillation; None: neither.
    frozen: Params | None
    batch: dict[str, jax.ShapeDtypeStruct]  # of a step
    create: Callable[[Params], TrainState]  # the first state; takes the parameters over
    # State, batch and frozen parameters -> state and metrics.
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    # Parameters, batch and frozen parameters -> float32 scalar.
    loss_of_microbatch: Callable[..., jax.Array]
    # The same of a microbatch, whatever a step minimizes: the sum over tokens that have a loss, in nats.
    cross_entropy: Callable[..., jax.Array]

    @property
    def param_shardings(self) -> Any:
        """The sharding of every parameter."""
        return jax.tree.map(lambda x: x.sharding, self.params)

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of a batch's rows."""
        return self.batch["tokens"].sharding


def make_program(
    config: ConfigDict,
    model: ModelConfig,
    gist_token: int,
    mesh: Mesh,
    space_token: int | None = None,
) -> Program:
    """The program of a config for a model.

    Args:
      space_token: see `gist.without_gists`.

    Raises:
      UserError: if parameters or rows do not divide over the mesh.
    """
    accumulate = config.optimizer.accumulate
    of_batch = batch_sharding(mesh, config.data.batch_size, accumulate)
    everywhere = replicated(mesh)
    adapter, key = adapter_config(config), jax.random.key(0)
    shapes = jax.eval_shape(lambda: registry.init(model, key))
    of_params = param_shardings(mesh, registry.logical_axes(model), shapes)
    frozen = None
    if adapter is not None or config.loss.kind == "distill":
        rounded = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, config.param_dtype), shapes)
        frozen = with_shardings(rounded, of_params)
    if adapter is not None:
        shapes = jax.eval_shape(lambda: registry.init_adapter(model, adapter, key))
        of_params = param_shardings(mesh, registry.logical_axes(model, adapter=adapter), shapes)
    optimizer = make_optimizer(config)
    of_optimizer = optimizer_shardings(mesh, optimizer, shapes, of_params)
    of_state = TrainState._make((everywhere, of_params, of_optimizer))  # shardings for arrays
    step_config = StepConfig(
        config.condition,
        gist_token,
        space_token,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        remat=config.remat,
        attention=config.attention,
        dropout=config.dropout,
        seed=config.seed,
        adapter=adapter,
        loss=LossConfig(**config.loss.to_dict()),
        mask=mask_config(config),
    )
    settings: dict[str, Any] = dict(
        config=model, step_config=step_config, optimizer=optimizer, accumulate=accumulate
    )

    def create(params: Params) -> TrainState:
        return TrainState(jnp.int32(0), params, optimizer.init(params))

    def loss_of_microbatch(
        params: Params, batch: dict[str, jax.Array], frozen: Params | None = None
    ) -> jax.Array:
        part = jax.tree.map(lambda x: x[::accumulate], batch)
        return summed_loss(params, model, step_config, part, frozen)

    def cross_entropy(
        params: Params, batch: dict[str, jax.Array], frozen: Params | None = None
    ) -> jax.Array:
        return summed_loss(params, model, step_config._replace(loss=LossConfig()), batch, frozen)

    return Program(
        mesh,
        with_shardings(shapes, of_params),
        with_shardings(jax.eval_shape(create, shapes), of_state),
        frozen,
        _batch(config, model, of_batch),
        jax.jit(create, donate_argnums=0, out_shardings=of_state),
        jax.jit(
            functools.partial(train_step, **settings),
            donate_argnums=0,
            out_shardings=(of_state, everywhere),
        ),
        jax.jit(loss_of_microbatch, out_shardings=everywhere),
        jax.jit(cross_entropy, out_shardings=everywhere),
    )


def _batch(
    config: ConfigDict, model: ModelConfig, sharding: NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch, see `training_batches`."""
    data = config.data
    gives_spans = mask_config(config).placement != AFTER
    sizes = data.max_length, data.max_output_length
    lengths = row_lengths(model.is_encoder_decoder, *sizes, gives_spans)
    return {
        name: jax.ShapeDtypeStruct(
            (data.batch_size, length),
            np.float32 if name == "weights" else np.int32,
            sharding=sharding,
        )
        for name, length in lengths.items()
    }
