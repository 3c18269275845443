"""Losses do not depend on the mesh, on accumulation or on packing; a stopped run goes on exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from gist_jax.data import instructions
from gist_jax.data.batching import training_batches
from gist_jax.data.tokenization import SPECIAL_TOKENS, from_tokenizers
from gist_jax.interop import workdir as files
from gist_jax.models import llama
from gist_jax.training import loop, sharding
from gist_jax.training.config import default
from gist_jax.training.metrics import read_metrics
from gist_jax.training.optimizer import make_optimizer, make_schedule
from gist_jax.training.run import prepare
from gist_jax.training.step import Objective, TrainState, summed_loss, train_step

GIST = 40


def random_batch(rows=8, length=24, seed=0):
    """Rows of different lengths with different numbers of output tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, GIST, (rows, length)).astype(np.int32)
    tokens[:, 6] = GIST
    lengths = rng.integers(10, length, rows)
    index = np.arange(length)
    segment = (index < lengths[:, None]).astype(np.int32)
    weights = (segment * (index >= rng.integers(8, 10, rows)[:, None])).astype(np.float32)
    return {"tokens": tokens, "targets": np.roll(tokens, -1, 1), "weights": weights, "segment": segment}


def losses_on(tiny, mesh_sizes, accumulate, steps=4):
    """Losses of a few steps on a mesh of simulated devices, or on one device without any."""
    config, params = tiny
    recipe = default()
    recipe.optimizer.update(learning_rate=1e-2, warmup_steps=0)
    optimizer = make_optimizer(recipe)
    step = functools.partial(
        train_step,
        config=config,
        objective=Objective("gist", GIST),
        optimizer=optimizer,
        accumulate=accumulate,
    )
    if mesh_sizes is None:
        step, place = jax.jit(step), lambda batch: batch
    else:
        recipe.mesh.update(dict(zip(sharding.MESH_AXES, mesh_sizes, strict=True)))
        mesh = sharding.make_mesh(recipe)
        on = sharding.param_shardings(mesh, llama.logical_axes(config), params)
        moments = sharding.optimizer_shardings(mesh, optimizer, params, on)
        state_on = TrainState(sharding.replicated(mesh), on, moments)
        rows = sharding.batch_sharding(mesh, 8, accumulate)
        step = jax.jit(step, in_shardings=(state_on, rows), out_shardings=(state_on, None))
        params, place = jax.device_put(params, on), lambda batch: jax.device_put(batch, rows)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    losses = []
    for seed in range(steps):
        state, metrics = step(state, place(random_batch(seed=seed)))
        losses.append(float(metrics["loss"]))
    return losses


@pytest.fixture(scope="module")
def reference(tiny):
    return losses_on(tiny, None, 1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("sizes", [None, (4, 1, 1), (1, 4, 1), (2, 1, 2)])
def test_losses_do_not_depend_on_mesh_or_accumulation(tiny, reference, sizes, accumulate):
    np.testing.assert_allclose(losses_on(tiny, sizes, accumulate), reference, rtol=1e-5)


def test_parameters_are_split_over_the_mesh(tiny):
    config, params = tiny
    recipe = default()
    recipe.mesh.update(data=1, fsdp=2, tensor=2)
    mesh = sharding.make_mesh(recipe)
    on = sharding.param_shardings(mesh, llama.logical_axes(config), params)
    gate = jax.device_put(
        params["layers"]["feed_forward"]["gate"]["kernel"],
        on["layers"]["feed_forward"]["gate"]["kernel"],
    )
    assert gate.addressable_shards[0].data.shape == (2, 16, 24)


def test_a_parameter_without_a_rule_is_an_error(tiny):
    mesh = sharding.make_mesh(default())
    with pytest.raises(ValueError, match="parameter x has axis 'heights'"):
        sharding.param_shardings(mesh, {"x": ("heights",)}, {"x": jnp.zeros(3)})


def test_packing_does_not_change_the_loss(tiny):
    """The same examples, one a row and all in one row."""
    config, params = tiny
    batch = random_batch(rows=3)
    kept = batch["segment"] > 0
    packed = {name: x[kept][None] for name, x in batch.items()}
    packed["segment"] = (batch["segment"] * np.array([[1], [2], [3]], np.int32))[kept][None]
    loss = jax.jit(summed_loss, static_argnums=(1, 2))
    for condition in ("gist", "pos_control", "neg_control"):
        objective = Objective(condition, GIST)
        apart, together = loss(params, config, objective, batch), loss(params, config, objective, packed)
        np.testing.assert_allclose(apart, together, rtol=1e-5)


def test_loss_counts_output_tokens_only(tiny):
    config, params = tiny
    objective, batch = Objective("gist", GIST), random_batch()
    other = {**batch, "targets": np.where(batch["weights"] > 0, batch["targets"], 7).astype(np.int32)}
    loss = jax.jit(summed_loss, static_argnums=(1, 2))
    assert loss(params, config, objective, batch) == loss(params, config, objective, other)
    padding = np.where(batch["segment"] > 0, batch["tokens"], 11).astype(np.int32)
    changed = loss(params, config, objective, {**batch, "tokens": padding})
    np.testing.assert_allclose(changed, loss(params, config, objective, batch), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_schedule(schedule):
    config = default()
    config.num_steps = 100
    config.optimizer.update(learning_rate=2.0, warmup_steps=10, schedule=schedule)
    rate = make_schedule(config)
    values = [float(rate(step)) for step in (0, 5, 10, 55, 100)]
    assert values == pytest.approx(
        [0, 1, 2, 1, 0] if schedule == "cosine" else [0, 1, 2, 2, 2], abs=1e-6
    )


def tokenizer():
    return from_tokenizers(instructions.load_tokenizer(), SPECIAL_TOKENS)


@pytest.mark.parametrize("pack", [False, True])
def test_batches_go_on_where_they_were(pack):
    settings = dict(num_gist_tokens=2, batch_size=4, max_length=64, pack=pack, seed=1)
    source = instructions.Corpus("train")
    stream = training_batches(source, tokenizer(), **settings)
    for _ in range(3):
        batch = next(stream)
    assert all(x.shape == (4, 64) for x in batch.values())
    assert (batch["segment"].max(axis=1) > 1).any() == pack
    state = stream.get_state()
    expected = next(stream)
    again = training_batches(source, tokenizer(), **settings)
    again.set_state(state)
    for name, value in next(again).items():
        np.testing.assert_array_equal(value, expected[name])


def test_long_examples_keep_their_gist_tokens():
    example = {"instruction": "word " * 100, "input": "tea", "output": "cup"}
    batch = next(
        training_batches(
            [example], tokenizer(), num_gist_tokens=3, batch_size=1, max_length=20, pack=False, seed=0
        )
    )
    assert (batch["tokens"] == tokenizer().gist_id).sum() == 3


def losses(workdir):
    return [(line["step"], line["loss"]) for line in read_metrics(workdir) if "loss" in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    loop.train(prepare(quick.get_config(), workdir))
    return workdir


def test_a_stopped_run_goes_on_with_the_same_losses(undisturbed, tmp_path):
    config = quick.get_config()
    config.evaluation.every = 5

    def stop(params, step):
        if step == 5 and not stopped:
            stopped.append(step)
            raise InterruptedError
        return {}

    stopped = []
    with pytest.raises(InterruptedError):
        loop.train(prepare(config, tmp_path), stop)
    assert losses(tmp_path)[-1][0] == 5  # later than the checkpoint, which is of step 4
    loop.train(prepare(config, tmp_path), stop)
    assert losses(tmp_path) == losses(undisturbed)


def test_a_finished_run_does_nothing_more(undisturbed):
    before = (undisturbed / "metrics.jsonl").read_text()
    loop.train(prepare(quick.get_config(), undisturbed))
    assert (undisturbed / "metrics.jsonl").read_text() == before


def test_the_best_and_the_last_checkpoint_are_kept(tmp_path):
    config = quick.get_config()
    config.evaluation.every = 2
    scores = {2: 1.0, 4: 9.0, 6: 3.0, 8: 2.0}
    loop.train(prepare(config, tmp_path), lambda _, step: {config.checkpoint.metric: scores[step]})
    kept = sorted(int(path.name) for path in (tmp_path / files.CHECKPOINTS).iterdir())
    assert kept == [4, 8]
    assert files.load_params(tmp_path)[1] == 4


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    def diverging(state, batch, **settings):
        state, metrics = train_step(state, batch, **settings)
        return state, {**metrics, "loss": jnp.where(state.step == 6, jnp.nan, metrics["loss"])}

    monkeypatch.setattr(loop, "train_step", diverging)
    with pytest.raises(loop.Diverged, match="at step 6: training stopped"):
        loop.train(prepare(quick.get_config(), tmp_path))
    assert files.load_params(tmp_path)[1] == 4


def test_another_config_in_the_same_workdir_is_refused(undisturbed):
    config = quick.get_config()
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match="holds a run whose config.optimizer"):
        prepare(config, undisturbed)
