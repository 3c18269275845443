"""Equality with the published PyTorch implementation (tests/golden/README.md). Tolerances stay."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gist_jax import gist
from gist_jax.inference.compress import compress
from gist_jax.inference.generate import generate, prefill
from gist_jax.inference.gist_cache import GistCache
from gist_jax.models import llama
from gist_jax.training.config import default
from gist_jax.training.optimizer import make_optimizer
from gist_jax.training.step import Objective, TrainState, train_step

CASES = range(3)
EOS = 2


@dataclasses.dataclass
class Case:
    """One golden prompt, [1, T], whose first `split` tokens are the instruction and gist tokens."""

    name: str
    tokens: np.ndarray
    split: int
    num_gist_tokens: int


@pytest.fixture(params=CASES)
def case(request, golden, golden_model):
    name = f"case{request.param}"
    tokens = golden[f"{name}/input_ids"].astype(np.int32)
    last = np.flatnonzero(tokens[0] == golden_model[0].vocab_size - 1)[-1]
    return Case(name, tokens, int(last) + 1, int(golden[f"{name}/num_gist_tokens"]))


@pytest.fixture(scope="module")
def separate(golden_model):
    return llama.unstacked(golden_model[1])


def full_logits(params, config, tokens, condition):
    layout = gist.layout_of(jnp.asarray(tokens), config.vocab_size - 1)
    bias = gist.mask_to_bias(gist.decoder_mask(layout, condition))
    positions = gist.positions_of(layout.segment)
    return llama.logits(params, config, llama.forward(params, config, tokens, positions, bias).hidden)


@pytest.mark.parametrize("condition", gist.CONDITIONS)
def test_mask(case, condition, golden, golden_model):
    layout = gist.layout_of(jnp.asarray(case.tokens), golden_model[0].vocab_size - 1)
    published = np.tril(golden[f"{case.name}/{condition}/mask"])
    np.testing.assert_array_equal(gist.decoder_mask(layout, condition)[0, 0], published)


@pytest.mark.parametrize("layers", ["stacked", "separate"])
@pytest.mark.parametrize("condition", gist.CONDITIONS)
def test_logits(case, condition, layers, golden, golden_model, separate):
    config, params = golden_model
    params = params if layers == "stacked" else separate
    ours = full_logits(params, config, case.tokens, condition)
    np.testing.assert_allclose(ours, golden[f"{case.name}/{condition}/logits"], rtol=0, atol=2e-4)


def compressed(case, config, params) -> GistCache:
    tokens = case.tokens[:, : case.split]
    arrays = compress(
        params,
        tokens,
        np.ones_like(tokens),
        config=config,
        gist_token=config.vocab_size - 1,
        num_kept=case.num_gist_tokens,
    )
    return GistCache(*arrays, fingerprint="")


def greedy(config, params, tokens, prefix, condition):
    limits = np.int32(12), np.int32(EOS), np.int32(0)
    shape = dict(config=config, condition=condition, gist_token=config.vocab_size - 1, max_new=12)
    return np.asarray(generate(params, tokens, np.ones_like(tokens), prefix, *limits, None, **shape))[0]


def assert_continues(ours, published):
    """Equal up to the published end, and then nothing but end of sequence."""
    np.testing.assert_array_equal(ours[: len(published)], published)
    assert all(token == EOS for token in ours[len(published) :])


@pytest.mark.parametrize("condition", gist.CONDITIONS)
def test_greedy_from_the_full_prompt(case, condition, golden, golden_model, separate):
    ours = greedy(golden_model[0], separate, case.tokens, None, condition)
    assert_continues(ours, golden[f"{case.name}/{condition}/greedy"][0])


def test_gist_cache(case, golden, golden_model, separate):
    gists = compressed(case, golden_model[0], separate)
    published = f"{case.name}/gist_cache"
    for side in ("keys", "values"):
        ours = np.stack(getattr(gists.cache, side))
        np.testing.assert_allclose(ours, golden[f"{published}/{side}"], rtol=0, atol=2e-4)
    # The published offset is that of the first gist token.
    assert gists.offset - case.num_gist_tokens == golden[f"{published}/gist_start"]


def test_logits_from_the_cache(case, golden, golden_model, separate):
    config, gists = golden_model[0], compressed(case, golden_model[0], separate)
    tokens = jnp.asarray(case.tokens[:, case.split :])
    shape = dict(config=config, condition="gist", gist_token=config.vocab_size - 1)
    prompt = prefill(separate, tokens, jnp.ones_like(tokens), gists, **shape)
    ours = llama.logits(separate, config, prompt.hidden)
    published = golden[f"{case.name}/gist_cache/logits_after"]
    np.testing.assert_allclose(ours[:, -published.shape[1] :], published, rtol=0, atol=2e-4)


def test_greedy_from_the_cache(case, golden, golden_model, separate):
    gists = compressed(case, golden_model[0], separate)
    ours = greedy(golden_model[0], separate, case.tokens[:, case.split :], gists, "gist")
    assert_continues(ours, golden[f"{case.name}/gist_cache/greedy"][0])


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ten_training_steps(accumulate, remat, golden, golden_model):
    config, params = golden_model
    recipe = default()
    recipe.num_steps = 10
    recipe.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    optimizer = make_optimizer(recipe)
    step = jax.jit(
        functools.partial(
            train_step,
            config=config,
            objective=Objective("gist", config.vocab_size - 1, remat=remat),
            optimizer=optimizer,
            accumulate=accumulate,
        )
    )
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    losses, norms = [], []
    for t in range(10):
        tokens = golden[f"train/step{t}/input_ids"].astype(np.int32)
        labels = golden[f"train/step{t}/labels"]  # not yet shifted; -100 = no loss
        targets = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
        batch = {
            "tokens": tokens,
            "targets": np.maximum(targets, 0).astype(np.int32),
            "weights": (targets != -100).astype(np.float32),
            "segment": np.ones_like(tokens),
        }
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
        norms.append(metrics["grad_norm"])
    np.testing.assert_allclose(losses, golden["train/loss"], rtol=1e-3)
    np.testing.assert_allclose(norms, golden["train/grad_norm"], rtol=1e-3)
    row = state.params["head"]["kernel"][:, 5]
    np.testing.assert_allclose(row, golden["train/final_lm_head_row5"], rtol=0, atol=1e-4)
