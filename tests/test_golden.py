"""Equality with the published PyTorch implementation (tests/golden/README.md). Tolerances stay."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gist_jax import gist
from gist_jax.inference.decode import generate
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.prefill import compress
from gist_jax.models.cache import KVCache
from gist_jax.models.model import DecodeState, Tokens
from gist_jax.models.registry import merge
from gist_jax.models.stack import unstacked
from gist_jax.training.config import default
from gist_jax.training.optimizer import make_optimizer
from gist_jax.training.step import StepConfig, TrainState, logits, train_step

CASES = range(3)
EOS = {"llama": 2, "t5": 1}


@dataclasses.dataclass
class Case:
    """One golden prompt, [1, T], whose first `split` tokens are the instruction and gist tokens."""

    name: str
    tokens: np.ndarray
    decoder_tokens: np.ndarray | None  # of an encoder-decoder, [1, S]
    split: int
    num_gist_tokens: int

    def batch(self) -> dict[str, np.ndarray]:
        batch = {"tokens": self.tokens, "segment": np.ones_like(self.tokens)}
        if self.decoder_tokens is not None:
            batch["decoder_tokens"] = self.decoder_tokens
            batch["decoder_segment"] = np.ones_like(self.decoder_tokens)
        return batch


@pytest.fixture(params=CASES)
def case(request, golden, golden_model):
    name = f"case{request.param}"
    tokens = golden[f"{name}/input_ids"].astype(np.int32)
    decoder_tokens = golden.get(f"{name}/decoder_input_ids")
    if decoder_tokens is not None:
        decoder_tokens = decoder_tokens.astype(np.int32)
    last = np.flatnonzero(tokens[0] == golden_model[0].vocab_size - 1)[-1]
    return Case(name, tokens, decoder_tokens, int(last) + 1, int(golden[f"{name}/num_gist_tokens"]))


@pytest.fixture(scope="module")
def unrolled(golden_model):
    return unstacked(golden_model[1])


@pytest.mark.parametrize("condition", gist.CONDITIONS)
def test_mask(case, condition, golden, golden_model):
    config = golden_model[0]
    layout = gist.layout_of(jnp.asarray(case.tokens), config.vocab_size - 1)
    mask = gist.attention_mask(layout, condition, bidirectional=config.is_encoder_decoder)[0, 0]
    if case.decoder_tokens is None:
        np.testing.assert_array_equal(mask, np.tril(golden[f"{case.name}/{condition}/mask"]))
        return
    np.testing.assert_array_equal(mask, golden[f"{case.name}/{condition}/encoder_mask"])
    output = gist.following(layout, jnp.ones_like(case.decoder_tokens))
    mask = gist.attention_mask(output, condition, before=layout)[0, 0]
    cross, own = np.split(np.asarray(mask), [case.tokens.shape[1]], axis=1)
    for row in cross:
        np.testing.assert_array_equal(row, golden[f"{case.name}/{condition}/cross_mask"])
    np.testing.assert_array_equal(own, np.tril(np.ones_like(own)))


@pytest.mark.parametrize("condition", gist.CONDITIONS)
def test_logits(case, condition, golden, golden_model):
    config, params = golden_model
    ours = logits(params, config, StepConfig(condition, config.vocab_size - 1), case.batch())
    np.testing.assert_allclose(ours, golden[f"{case.name}/{condition}/logits"], rtol=0, atol=2e-4)


def compressed(case, config, params) -> GistCache:
    tokens = case.tokens[:, : case.split]
    settings = dict(gist_token=config.vocab_size - 1, num_kept=case.num_gist_tokens)
    return compress(params, tokens, np.ones_like(tokens), config=config, **settings)


def greedy(config, params, tokens, prefix, condition, eos):
    limits = np.int32(12), np.int32(eos), np.int32(0)
    shape = dict(config=config, condition=condition, gist_token=config.vocab_size - 1, max_new=12)
    return np.asarray(generate(params, tokens, np.ones_like(tokens), prefix, *limits, None, **shape))[0]


def assert_continues(ours, published, eos):
    """Equal up to the published end, and then nothing but end of sequence."""
    np.testing.assert_array_equal(ours[: len(published)], published)
    assert all(token == eos for token in ours[len(published) :])


@pytest.mark.parametrize("condition", gist.CONDITIONS)
def test_greedy_from_the_full_prompt(case, condition, golden, golden_model, unrolled, model_family):
    eos = EOS[model_family]
    ours = greedy(golden_model[0], unrolled, case.tokens, None, condition, eos)
    assert_continues(ours, golden[f"{case.name}/{condition}/greedy"][0], eos)


def test_gist_cache(case, golden, golden_model, unrolled):
    gists = compressed(case, golden_model[0], unrolled)
    published = f"{case.name}/gist_cache"
    for side in ("keys", "values"):
        ours = np.stack(getattr(gists.memory.cache, side))
        np.testing.assert_allclose(ours, golden[f"{published}/{side}"], rtol=0, atol=2e-4)
    if case.decoder_tokens is None:
        assert gists.memory.states is None
    else:
        states = golden[f"{published}/last_hidden_state"]
        np.testing.assert_allclose(gists.memory.states, states, rtol=0, atol=2e-4)
    # The published offset is that of the first gist token.
    assert gists.offset - case.num_gist_tokens == golden[f"{published}/gist_start"]
    expected = gists.offset - case.num_gist_tokens + np.arange(case.num_gist_tokens)
    np.testing.assert_array_equal(gists.memory.positions[0], expected)


def decoded(model, ids, bias, context) -> jax.Array:
    """Final hidden states of an encoder-decoder's outputs, decoded token by token."""
    config, (rows, length) = model.config, ids.shape
    shape = rows, config.num_heads, length, config.head_dim
    cache = KVCache.empty(config.num_decoder_layers, shape, "float32")
    state, steps = DecodeState(cache, jnp.int32(0), jnp.zeros((1, 1), jnp.int32)), []
    step = jax.jit(model.decode_step)
    for t in range(length):
        hidden, state = step(ids[:, t : t + 1], bias[:, :, t : t + 1], context, state)
        steps.append(hidden)
    return jnp.concatenate(steps, axis=1)


def test_logits_from_the_cache(case, golden, golden_model, unrolled):
    """Of all tokens after the gist tokens in one call, or of all that a decoder writes, one by one."""
    config, gists = golden_model[0], compressed(case, golden_model[0], unrolled)
    model = merge(unrolled, config)
    tokens = jnp.asarray(case.tokens[:, case.split :])
    layout = gist.continued(gists.layout, gist.layout_of(tokens, config.vocab_size - 1))
    mask = gist.attention_mask(
        layout, "gist", before=gists.layout, bidirectional=config.is_encoder_decoder
    )
    positions = gist.positions_of(layout.segment) + gists.offset[:, None]
    inputs = Tokens(tokens, positions, gist.mask_to_bias(mask))
    hidden, memory = jax.jit(model.prefill)(inputs, gists.memory)
    if case.decoder_tokens is not None:
        output = gist.following(layout, jnp.ones_like(case.decoder_tokens))
        mask = gist.attention_mask(output, "gist", before=gist.joined(gists.layout, layout))
        context = gists.context_kv(model), model.context_kv(memory)
        hidden = decoded(model, case.decoder_tokens, gist.mask_to_bias(mask), context)
    ours = model.logits(hidden)
    name = "logits_after" if case.decoder_tokens is None else "logits"
    published = golden[f"{case.name}/gist_cache/{name}"]
    np.testing.assert_allclose(ours[:, -published.shape[1] :], published, rtol=0, atol=2e-4)


def test_greedy_from_the_cache(case, golden, golden_model, unrolled, model_family):
    eos, gists = EOS[model_family], compressed(case, golden_model[0], unrolled)
    ours = greedy(golden_model[0], unrolled, case.tokens[:, case.split :], gists, "gist", eos)
    assert_continues(ours, golden[f"{case.name}/gist_cache/greedy"][0], eos)


def training_batch(golden, step: int, config) -> dict[str, np.ndarray]:
    """A published batch in our form. Its labels have -100 where there is no loss."""
    tokens = golden[f"train/step{step}/input_ids"].astype(np.int32)
    labels = golden[f"train/step{step}/labels"]
    batch = {"tokens": tokens, "segment": np.ones_like(tokens)}
    if not config.is_encoder_decoder:  # the labels are not yet shifted
        labels = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    targets = np.maximum(labels, 0).astype(np.int32)
    if config.is_encoder_decoder:
        start = config.decoder_start_token  # which is also what the prompts are padded with
        batch["segment"] = (tokens != start).astype(np.int32)
        batch["decoder_tokens"] = np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start)
        batch["decoder_segment"] = np.ones_like(targets)
    return {**batch, "targets": targets, "weights": (labels != -100).astype(np.float32)}


RECIPES = {
    "llama": dict(learning_rate=1e-2, warmup_steps=2),
    "t5": dict(learning_rate=5e-3, warmup_steps=0, schedule="constant"),
}


@pytest.mark.parametrize(("accumulate", "remat"), [(1, "none"), (2, "full")])
def test_ten_training_steps(accumulate, remat, golden, golden_model, model_family):
    config, params = golden_model
    recipe = default()
    recipe.num_steps = 10
    recipe.optimizer.update(RECIPES[model_family])
    optimizer = make_optimizer(recipe)
    step = jax.jit(
        functools.partial(
            train_step,
            config=config,
            step_config=StepConfig("gist", config.vocab_size - 1, remat=remat),
            optimizer=optimizer,
            accumulate=accumulate,
        )
    )
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    losses, norms = [], []
    for t in range(10):
        state, metrics = step(state, training_batch(golden, t, config))
        losses.append(metrics["loss"])
        norms.append(metrics["grad_norm"])
    np.testing.assert_allclose(losses, golden["train/loss"], rtol=1e-3)
    np.testing.assert_allclose(norms, golden["train/grad_norm"], rtol=1e-3)
    if "train/final_lm_head_row5" in golden:
        row = state.params["head"]["kernel"][:, 5]
        np.testing.assert_allclose(row, golden["train/final_lm_head_row5"], rtol=0, atol=1e-4)
