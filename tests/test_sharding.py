"""Losses do not depend on the mesh or on accumulation; arrays lie where the rules say."""

import collections
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import MODELS, compiled_step, losses_of, metrics_of, program_of, random_batch, start

from gist_jax import sharding
from gist_jax.cost_model.collectives import collectives
from gist_jax.training.config import default

STACKS = ("encoder", "decoder")
# Rates: masks depend on neither mesh nor accumulation.
DROPOUT = {"llama": 0.0, "t5": 0.2}


@functools.cache
def reference(family):
    """Losses and norms of one device."""
    return metrics_of(family, dropout=DROPOUT[family])


# Not all pairs, for want of time.
MESHES = [((1, 1, 1), 2), ((8, 1, 1), 2), ((1, 8, 1), 1), ((2, 2, 2), 2), ((1, 1, 8), 1)]


@pytest.mark.parametrize(
    ("family", "sizes", "accumulate"),
    [*(("llama", *mesh) for mesh in MESHES), *(("t5", *mesh) for mesh in MESHES[-2:])],
)
def test_losses_do_not_depend_on_mesh_or_accumulation(family, sizes, accumulate):
    settings = dict(dropout=DROPOUT[family], optimizer__accumulate=accumulate)
    losses, norms = metrics_of(family, sizes, **settings)
    np.testing.assert_allclose(losses, reference(family)[0], rtol=1e-5)
    # AdamW would not see gradients that are too large or too small.
    np.testing.assert_allclose(norms, reference(family)[1], rtol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer__name": "adafactor", "optimizer__accumulate": 2, "param_dtype": "bfloat16"},
        {"optimizer__moment_dtype": "bfloat16", "remat": "full"},
    ],
    ids=["adafactor", "bfloat16 moments"],
)
def test_other_optimizers_and_precisions(settings):
    """The same on a mesh but for rounding; not quite what AdamW does, and not far from it."""
    alone, sharded = (losses_of("llama", sizes, **settings) for sizes in ((1, 1, 1), (2, 2, 2)))
    np.testing.assert_allclose(sharded, alone, rtol=2e-2 if "param_dtype" in settings else 1e-3)
    plain = reference("llama")[0][:3]
    np.testing.assert_allclose(alone[:3], plain, rtol=0.1)
    assert abs(alone[2] - plain[2]) > 1e-5


def test_bfloat16_steps_change_float32_master_weights():
    """Steps that are too small for bfloat16 add up."""
    program = program_of("llama", param_dtype="bfloat16", optimizer__learning_rate=1e-6)
    with jax.set_mesh(program.mesh):
        before = start("llama")
        state = program.create(jax.device_put(before, program.param_shardings))
        step = compiled_step(program)
        for _ in range(3):
            batch = random_batch(MODELS["llama"], rows=16)
            state, _ = step(state, jax.device_put(batch, program.batch_sharding), None)
    change = np.abs(state.params["embedding"] - before["embedding"])
    assert state.params["embedding"].dtype == np.float32
    assert 2e-6 < np.max(change) < 4e-6


@pytest.mark.parametrize("accumulate", [1, 2])
def test_dropout_depends_on_seed_and_step_and_row(accumulate):
    program = program_of(
        "t5", dropout=0.2, optimizer__learning_rate=1e-30, optimizer__accumulate=accumulate
    )
    batch, losses = random_batch(MODELS["t5"], rows=16), []
    # The same row everywhere: which of them the loss is of would not matter if they shared a key.
    repeated, of_rows = {name: np.repeat(x[:1], 16, 0) for name, x in batch.items()}, []
    with jax.set_mesh(program.mesh):
        step = compiled_step(program)

        def create():
            return program.create(jax.device_put(start("t5"), program.param_shardings))

        state = create()
        for _ in range(2):  # whose updates are nothing
            state, metrics = step(state, jax.device_put(batch, program.batch_sharding), None)
            losses.append(float(metrics["loss"]))
        for row in (0, 1, 8, 15):
            of_one = {**repeated, "weights": repeated["weights"] * (np.arange(16) == row)[:, None]}
            of_one["weights"] = of_one["weights"].astype(np.float32)
            _, metrics = step(create(), jax.device_put(of_one, program.batch_sharding), None)
            of_rows.append(float(metrics["loss"]))
    if accumulate == 1:
        losses.append(losses_of("t5", dropout=0.2, seed=1, steps=1)[0])
    assert len(set(losses)) == len(losses) and len(set(of_rows)) == 4


def part(x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape of what one device holds."""
    return x.sharding.shard_shape(x.shape)


def test_parameters_and_moments_are_split_over_the_mesh(model_family):
    program, model = program_of(model_family, (1, 2, 4)), MODELS[model_family]
    adam = program.state.opt_state[1]
    for tree in (program.state.params, adam.mu, adam.nu):
        layers = tree.get("encoder", tree)["layers"]
        assert part(layers["feed_forward"]["up"]["kernel"]) == (model.num_layers, 16, 12)
        assert part(layers["attention"]["query"]["kernel"]) == (model.num_layers, 16, 2, 4)
        assert part(tree["embedding"]) == (41, 16)  # 41 rows do not divide
    assert part(program.batch["tokens"]) == (8, 24)


def test_key_value_heads_that_do_not_divide_stay_whole():
    layers = program_of("llama", (1, 1, 8)).params["layers"]
    assert part(layers["attention"]["key"]["kernel"])[2:] == (2, 4)
    assert part(layers["attention"]["query"]["kernel"])[2:] == (1, 4)


def test_adafactor_keeps_little_and_shards_the_rest():
    state = program_of("llama", (1, 8, 1), optimizer__name="adafactor").state
    factored = state.opt_state[1][0]
    small = factored.v["layers"]["feed_forward"]["up"]["kernel"]
    assert part(small) == (2, 4, 48)  # too small to factor
    assert factored.v_row["layers"]["feed_forward"]["up"]["kernel"].sharding.is_fully_replicated


def test_a_parameter_without_a_rule_is_an_error():
    mesh = sharding.make_mesh(default().mesh)
    with pytest.raises(ValueError, match="parameter x has axis 'heights'"):
        sharding.param_shardings(mesh, {"x": ("heights",)}, {"x": jnp.zeros(3)})


def test_a_parameter_that_does_not_divide_is_an_error():
    config = default()
    config.mesh.update(data=1, fsdp=8)
    mesh = sharding.make_mesh(config.mesh)
    sentence = r"parameter x of shape \(12,\) does not divide over the mesh's 8"
    with pytest.raises(ValueError, match=sentence):
        sharding.param_shardings(mesh, {"x": ("embed",)}, {"x": jnp.zeros(12)})


def nbytes(tree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("model_family", "remat"), [("llama", "none"), ("llama", "full"), ("t5", "full")]
)
def test_no_device_gathers_more_than_a_layer_at_a_time(model_family, monkeypatch, remat):
    """With fsdp: what one trip of a loop gathers, and what is gathered outside of all loops."""
    wide = dict(num_layers=6, hidden_size=64, intermediate_size=128)
    if model_family == "t5":
        wide["num_decoder_layers"] = 6
    monkeypatch.setitem(MODELS, model_family, dataclasses.replace(MODELS[model_family], **wide))
    program = program_of(model_family, (1, 8, 1), remat=remat)
    gathered = collections.Counter()
    for collective in collectives(compiled_step(program).as_text()):
        if collective.kind == "all-gather":
            assert collective.inside == "" or collective.times == 6
            gathered[collective.inside] += collective.bytes
    stacks = [program.params] if model_family == "llama" else [program.params[s] for s in STACKS]
    layer = max(nbytes(stack["layers"]) for stack in stacks) / 6
    assert layer / 2 < max(gathered.values()) < 2 * layer < nbytes(program.params) / 3


def test_gisting_costs_nothing_in_training(model_family, monkeypatch):
    """FLOPs and bytes of a step are those of ordinary finetuning (arXiv 2304.08467, section 3.1)."""
    larger = dict(num_layers=2, hidden_size=256, intermediate_size=512, head_dim=32)
    monkeypatch.setitem(MODELS, model_family, dataclasses.replace(MODELS[model_family], **larger))
    costs = []
    for condition in ("gist", "pos_control"):
        program = program_of(model_family, condition=condition, data__max_length=128)
        cost = compiled_step(program).cost_analysis()
        costs.append([cost["flops"], cost["bytes accessed"]])
    assert costs[0] != costs[1]  # the masks do differ
    np.testing.assert_allclose(costs[0], costs[1], rtol=0.01)
