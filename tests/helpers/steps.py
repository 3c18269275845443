"""Training steps of small random models, on any mesh."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from tiny import TINY

from gist_jax import sharding
from gist_jax.models import registry
from gist_jax.models.adapter import AdapterConfig
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params
from gist_jax.training.config import default
from gist_jax.training.program import Program, make_program

GIST = 40
# Eight heads, so that they divide over eight devices.
MODELS = {name: dataclasses.replace(model, num_heads=8, head_dim=4) for name, model in TINY.items()}


def random_batch(config, rows=8, length=24, seed=0):
    """Rows of different lengths with different numbers of output tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, GIST, (rows, length)).astype(np.int32)
    tokens[:, 6] = GIST
    lengths = rng.integers(10, length, rows)
    index = np.arange(length)
    segment = (index < lengths[:, None]).astype(np.int32)
    weights = (segment * (index >= rng.integers(8, 10, rows)[:, None])).astype(np.float32)
    batch = {"tokens": tokens, "segment": segment}
    if not config.is_encoder_decoder:
        return {**batch, "targets": np.roll(tokens, -1, 1), "weights": weights}
    targets = rng.integers(3, GIST, (rows, 7)).astype(np.int32)
    written = (np.arange(7) < rng.integers(1, 8, rows)[:, None]).astype(np.int32)
    started = np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=config.decoder_start_token)
    of_decoder = {"decoder_tokens": started, "decoder_segment": written}
    return {**batch, **of_decoder, "targets": targets, "weights": written.astype(np.float32)}


def longer_and_packed(batch):
    """The examples of three rows in longer rows, and all in one row of a batch of the same shape."""
    numbered, packed = {**batch}, {}
    for segment in ("segment", "decoder_segment"):
        if segment in batch:
            numbered[segment] = batch[segment] * np.array([[1], [2], [3]], np.int32)
    for name, x in numbered.items():
        segment = "decoder_segment" if x.shape == batch["weights"].shape else "segment"
        packed[name] = x[batch.get(segment, batch["segment"]) > 0][None]
    longer = {
        name: np.pad(x, ((0, 0), (0, packed[name].shape[1] - x.shape[1]))) for name, x in batch.items()
    }
    return longer, {name: np.pad(x, ((0, 2), (0, 0))) for name, x in packed.items()}


def program_of(model_family, sizes=(1, 1, 1), **settings) -> Program:
    """The program of a model on a mesh of the first devices.

    Args:
      sizes: of the axes of the mesh.
      settings: fields of the config, `__` in place of the dot.
    """
    config = default(model_family)
    config.data.update(batch_size=16, max_length=24, max_output_length=7)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=0)
    config.update_from_flattened_dict({"dtype": "float32", "dropout": 0.0})
    config.update_from_flattened_dict({name.replace("__", "."): x for name, x in settings.items()})
    config.mesh.update(dict(zip(sharding.MESH_AXES, sizes, strict=True)))
    mesh = sharding.make_mesh(config.mesh, jax.devices()[: int(np.prod(sizes))])
    return make_program(config, MODELS[model_family], GIST, mesh)


@functools.cache
def start(model_family) -> Params:
    """Parameters to begin with."""
    params = jax.jit(registry.init, static_argnums=0)(MODELS[model_family], jax.random.key(7))
    return jax.tree.map(np.asarray, params)  # no step can take these over


def random_adapter(model: ModelConfig, adapter: AdapterConfig, seed=8) -> Params:
    """An adapter all of whose parameters matter."""
    shapes = jax.eval_shape(lambda: registry.init_adapter(model, adapter, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def compiled_step(program: Program):
    """The step."""
    with jax.set_mesh(program.mesh):
        lowered = program.step.lower(program.state, program.batch, program.frozen)
        # Simulated devices whose program comes from the cache may wait for each other for ever.
        with without_cache():
            return lowered.compile()


@contextlib.contextmanager
def without_cache():
    """Compiles what is compiled inside of it, whatever is on disk."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def losses_of(*args, **settings) -> list[float]:
    """The losses of some steps; see `metrics_of`."""
    return metrics_of(*args, **settings)[0]


def metrics_of(model_family, *args, steps=10, **settings) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of some steps, of an adapter of rank 4 if any; see `program_of`."""
    program = program_of(model_family, *args, **settings)
    model = MODELS[model_family]
    losses, norms = [], []
    with jax.set_mesh(program.mesh):
        begin, frozen = start(model_family), None
        if program.frozen is not None:
            frozen = jax.device_put(begin, jax.tree.map(lambda x: x.sharding, program.frozen))
        if "gist_embedding" in program.params:
            begin = random_adapter(model, AdapterConfig(4))
        state = program.create(jax.device_put(begin, program.param_shardings))
        run = compiled_step(program)
        for step in range(steps):
            batch = jax.device_put(random_batch(model, rows=16, seed=step), program.batch_sharding)
            state, metrics = run(state, batch, frozen)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
    return losses, norms
