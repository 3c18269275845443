"""FLOPs and bytes from shapes alone, against counts by hand, whole programs, published counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from tiny import TINY

from gist_jax import cli
from gist_jax.benchmark import analytic, counting
from gist_jax.benchmark.costs import costs
from gist_jax.benchmark.counting import count_program, nbytes
from gist_jax.benchmark.workload import MODES, Workload
from gist_jax.cost_model.hlo import bytes_accessed
from gist_jax.cost_model.jaxpr import least_traffic
from gist_jax.errors import UserError
from gist_jax.inference.decode import next_token
from gist_jax.models import registry
from gist_jax.models.config import LlamaConfig
from gist_jax.training.run import model_config

WORKLOAD = Workload(instruction=9, input=5, output=4, batch=3, gist_tokens=2, one_instruction=False)


def model_of(name):
    return model_config(cli.load_config(name))


# GFLOPs of a forward pass, by tokens of the prompt and of the input, with one gist token; measured by
# the paper's authors with PyTorch's profiler: https://github.com/jayelm/gisting, data/benchmarking.
PUBLISHED = {
    "llama_7b": {
        (58, 34): (768.285567292, 450.374408236, 449.963612688),
        (30, 2): (396.947951300, None, 26.435078288),
    },
    "flan_t5_xxl": {
        (51, 27): (566.742242385, None, 306.648110641),
        (27, 1): (305.026486545, None, None),
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_flops(name):
    """Within 1 %, as promised; they are much nearer."""
    config = model_of(name)
    for (prompt, text), published in PUBLISHED[name].items():
        workload = Workload(prompt - text - 1, text, 1, 1, 1, False)
        for mode, expected in zip(MODES, published, strict=True):
            if expected is not None:
                flops = costs(config, workload, mode, "bfloat16").forward.flops
                assert flops == pytest.approx(expected * 1e9, rel=0.0005)


@pytest.mark.parametrize(
    ("family", "mode"), [("llama", "gist_cache"), ("t5", "none"), ("t5", "prompt_cache")]
)
def test_costs_hold_for_every_depth_and_length(family, mode, monkeypatch):
    """What shallow models and other lengths tell is what is counted in the very program."""
    monkeypatch.setattr("gist_jax.benchmark.costs.STEP", 3)  # or XLA's counts are rounded, in float32
    shallow = TINY[family]
    config = dataclasses.replace(shallow, num_layers=4)
    if family == "t5":  # whose decoder is the same in all modes, and takes long
        config = dataclasses.replace(shallow, num_decoder_layers=3) if mode == "none" else shallow
    workload = WORKLOAD._replace(one_instruction=mode == "gist_cache")
    shape = analytic.Shape(
        3, workload.new_tokens(mode), workload.cached(mode), workload.caches, mode, workload.output
    )
    found = costs(config, workload, mode, "bfloat16", interpolate=True)
    assert costs(config, workload, mode, "bfloat16").first_token == count_program(
        config, "first_token", shape, "bfloat16"
    )
    same(found.first_token, count_program(config, "first_token", shape, "bfloat16"))
    same(found.next_token, count_program(config, "next_token", shape, "bfloat16"))
    same(found.forward, count_program(config, "forward", shape._replace(output=1), "bfloat16"))
    if mode != "none":
        made = analytic.Shape(workload.caches, 11, workload.cached(mode), 0, mode, 0)
        # XLA takes a sort of n numbers for n log n operations: no polynomial.
        same(found.make_cache, count_program(config, "make_cache", made, "bfloat16"), rel=1e-4)


def same(found, whole, rel=1e-6):
    assert found[1:] == whole[1:]
    assert found.flops == pytest.approx(whole.flops, rel=rel)


def test_a_wrong_count_is_refused(monkeypatch):
    config = dataclasses.replace(TINY["llama"], vocab_size=43)  # that nothing has counted yet
    by_hand = analytic._llama
    monkeypatch.setattr(analytic, "_llama", lambda *arguments: by_hand(*arguments) + 1)
    with pytest.raises(ValueError, match="FLOPs of matmuls, but .* by hand"):
        costs(config, WORKLOAD, "none", "float32")
    monkeypatch.undo()
    assert costs(config, WORKLOAD, "none", "float32")
    # Element-wise operations are a large part of so small a model.
    monkeypatch.setattr("gist_jax.benchmark.costs.BILLION", 1)
    with pytest.raises(UserError, match="of forward XLA counts .* FLOPs, more than 1 % off"):
        costs(dataclasses.replace(config, vocab_size=44), WORKLOAD, "none", "float32")


def test_modes(model_family):
    config = TINY[model_family]
    none, prompt, gist = (costs(config, WORKLOAD, mode, "bfloat16") for mode in MODES)
    assert none.first_token.flops > prompt.first_token.flops
    assert none.next_token.matmul_flops == prompt.next_token.matmul_flops > gist.next_token.matmul_flops
    assert none.cache_bytes == 0 and none.make_cache is None
    assert prompt.make_cache.matmul_flops >= gist.make_cache.matmul_flops
    # Keys and values of 2 layers (3 of the encoder), 2 (4) heads of 8; of T5 the state of 32 as well, or
    # keys and values of 2 decoder layers.
    of_token = {"llama": (2 * 2 * 2 * 8, 0, 0), "t5": (3 * 2 * 4 * 8, 32, 2 * 2 * 4 * 8)}[model_family]
    assert gist.cache_bytes == 2 * 2 * (of_token[0] + of_token[1])
    assert prompt.cache_bytes == 2 * 11 * (of_token[0] + of_token[2])


def test_least_traffic():
    x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    ids = jax.ShapeDtypeStruct((3,), jnp.int32)

    @jax.jit
    def function(table, unused, matrix, ids, passed):
        rows = jnp.take(table, ids, axis=0)
        return rows @ matrix.T, passed

    traced = function.trace(x, x, x, ids, x)
    assert least_traffic(traced.jaxpr) == 4 * (3 * 8 + 4 * 8 + 3 + 3 * 4)

    def tied(table, ids):
        return jnp.take(table, ids, axis=0) @ table.T

    assert least_traffic(jax.jit(tied).trace(x, ids).jaxpr) == 4 * (4 * 8 + 3 + 3 * 4)


@pytest.mark.parametrize(("tied", "batch"), [(False, 1), (True, 8)])
def test_a_decode_step_moves_little_more_than_weights_and_cache(tied, batch):
    """Of a model of 30 million parameters, compiled; and no cache is copied."""
    config = dataclasses.replace(model_of("llama_30m"), tie_embeddings=tied)
    shape = analytic.Shape(batch, 140, 0, 0, "none", 32)
    traced = counting._traced(config, "next_token", shape, "float32")
    step = functools.partial(next_token, config=config)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), traced.args_info[0])
    compiled = jax.jit(step, donate_argnums=2).lower(*arguments).compile()
    params, prefilled, state, _ = arguments
    accessed = bytes_accessed(compiled)
    assert accessed <= 1.15 * nbytes((params, prefilled.context, state.cache))
    assert accessed >= count_program(config, "next_token", shape, "float32").bytes
    assert compiled.memory_analysis().temp_size_in_bytes < nbytes(state.cache)


def test_the_model_to_measure_with_has_30_million_parameters():
    params = jax.eval_shape(lambda: registry.init(model_of("llama_30m"), jax.random.key(0)))
    assert 28e6 <= nbytes(params) / 4 <= 32e6
    assert isinstance(model_of("llama_30m"), LlamaConfig)
