"""Weights at gist positions only: what they change, what they leave alone, and what they learn from."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import GIST, MODELS, losses_of, metrics_of, random_adapter, random_batch, start

from gist_jax.models.adapter import Adapter, AdapterConfig
from gist_jax.training.losses import LossConfig, kl_divergence
from gist_jax.training.step import StepConfig, logits, summed_loss, teacher_logits

SPACE = 39  # in place of T5's lone space
ADAPTER_OF = AdapterConfig(4)


def packed_batch(model):
    """Rows of two examples, of which the first has gist tokens and the second none."""
    batch = random_batch(model, rows=4, length=24)
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, SPACE, (4, 24)).astype(np.int32)
    tokens[:, 4:7] = SPACE, GIST, GIST
    segment = np.repeat([[1] * 13 + [2] * 9 + [0] * 2], 4, axis=0).astype(np.int32)
    batch |= {"tokens": tokens, "segment": segment}
    if model.is_encoder_decoder:
        batch["decoder_segment"] = np.repeat([[1, 1, 1, 2, 2, 2, 0]], 4, axis=0).astype(np.int32)
        batch["weights"] = (batch["decoder_segment"] > 0).astype(np.float32)
    else:
        targets = np.roll(tokens, -1, 1)
        weights = ((segment > 0) & (targets != GIST)).astype(np.float32)
        batch |= {"targets": targets, "weights": weights}
    return batch


@pytest.fixture(scope="module")
def model_and_params(model_family):
    return MODELS[model_family], start(model_family)


def test_an_adapter_acts_at_gist_tokens_only(model_and_params):
    """What sees no gist token is as without it; what follows them is not; gradients reach it alone."""
    model, params = model_and_params
    batch, step_config = packed_batch(model), StepConfig("gist", GIST)
    adapter = Adapter(random_adapter(model, ADAPTER_OF), ADAPTER_OF)
    run = jax.jit(logits, static_argnums=(1, 2))
    plain = run(params, model, step_config, batch)
    adapted = run(params, model, step_config, batch, adapter)
    of_second = slice(3, 6) if model.is_encoder_decoder else slice(13, 22)
    np.testing.assert_allclose(adapted[:, of_second], plain[:, of_second], atol=1e-6)
    of_first = slice(0, 3) if model.is_encoder_decoder else slice(7, 13)
    assert np.abs(adapted[:, of_first] - plain[:, of_first]).max() > 0.1
    if not model.is_encoder_decoder:  # before the gist tokens
        np.testing.assert_allclose(adapted[:, :5], plain[:, :5], atol=1e-6)
    # With pairs at zero and the embedding of the base's own gist token it changes nothing.
    nothing = jax.tree.map(np.zeros_like, adapter.params)
    nothing["gist_embedding"] = params["embedding"][GIST]
    same = run(params, model, step_config, batch, dataclasses.replace(adapter, params=nothing))
    np.testing.assert_allclose(same, plain, atol=1e-6)


def test_a_base_without_a_gist_token(model_and_params):
    """Its embeddings end before the gist token's id."""
    model, params = model_and_params
    batch, step_config = packed_batch(model), StepConfig("gist", GIST, adapter=ADAPTER_OF)
    smaller = dataclasses.replace(model, vocab_size=GIST)
    cut = {**params, "embedding": params["embedding"][:GIST]}
    cut["head"] = {"kernel": params["head"]["kernel"][:, :GIST]}
    adapter = random_adapter(model, ADAPTER_OF)
    run = jax.jit(logits, static_argnums=(1, 2))
    whole = run(params, model, step_config, batch, Adapter(adapter, ADAPTER_OF))[..., :GIST]
    found = run(cut, smaller, step_config, batch, Adapter(adapter, ADAPTER_OF))
    np.testing.assert_allclose(found, whole, atol=1e-6)
    distill = step_config._replace(loss=LossConfig("distill", cross_entropy=0.5))
    loss = jax.jit(summed_loss, static_argnums=(1, 2))(adapter, smaller, distill, batch, cut)
    assert np.isfinite(loss)


def test_a_teacher_reads_rows_as_if_no_gist_token_were_in_them(model_and_params):
    model, params = model_and_params
    space = SPACE if model.is_encoder_decoder else None
    hidden = [4, 5, 6] if model.is_encoder_decoder else [5, 6]
    batch, step_config = packed_batch(model), StepConfig("gist", GIST, space)
    taken = {
        name: np.pad(np.delete(batch[name], hidden, axis=1), ((0, 0), (0, len(hidden))))
        for name in batch
        if not (model.is_encoder_decoder and name not in ("tokens", "segment"))
    }
    pos_control = StepConfig("pos_control", GIST)
    expected = jax.jit(logits, static_argnums=(1, 2))(params, model, pos_control, {**batch, **taken})
    found = jax.jit(teacher_logits, static_argnums=(1, 2))(params, model, step_config, batch)
    if not model.is_encoder_decoder:
        kept = np.delete(np.arange(24), hidden)[:20]  # the rest is padding
        found, expected = found[:, kept], expected[:, :20]
    else:
        found, expected = found[:, :6], expected[:, :6]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_student_that_is_its_teacher_has_no_loss(model_and_params):
    """Of rows without gist tokens; the gradient is nothing too."""
    model, params = model_and_params
    batch = packed_batch(model)
    batch["tokens"] = np.where(batch["tokens"] == GIST, 5, batch["tokens"]).astype(np.int32)
    step_config = StepConfig("pos_control", GIST, adapter=ADAPTER_OF, loss=LossConfig("distill"))
    nothing = jax.tree.map(np.zeros_like, random_adapter(model, ADAPTER_OF))
    gradient = jax.jit(jax.value_and_grad(summed_loss), static_argnums=(1, 2))
    loss, grads = gradient(nothing, model, step_config, batch, params)
    assert abs(loss) / batch["weights"].sum() < 1e-6
    assert max(np.abs(x).max() for x in jax.tree.leaves(grads)) < 1e-4
    assert gradient(nothing, model, step_config, packed_batch(model), params)[0] > 1


def test_divergence():
    """By hand, of five tokens of which the last is hidden."""
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 3, 5)).astype(np.float32)

    def softmax(x, temperature):
        x = np.exp(x[:, :4] / temperature)
        return x / x.sum(1, keepdims=True)

    for temperature in (1.0, 2.5):
        p, q = softmax(teacher, temperature), softmax(student, temperature)
        whole = (p * np.log(p / q)).sum(1) * temperature**2
        settings = dict(hidden=4, temperature=temperature)
        np.testing.assert_allclose(kl_divergence(teacher, student, **settings), whole, rtol=1e-5)
        order = np.argsort(-p, axis=1)
        p, q = np.take_along_axis(p, order, 1), np.take_along_axis(q, order, 1)
        p, q = (np.concatenate([x[:, :2], x[:, 2:].sum(1, keepdims=True)], 1) for x in (p, q))
        expected = (p * np.log(p / q)).sum(1) * temperature**2
        found = kl_divergence(teacher, student, **settings, top=2)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert np.all(found < whole)
    whole = kl_divergence(teacher, student, hidden=4)
    np.testing.assert_allclose(kl_divergence(teacher, student, hidden=4, top=4), whole, rtol=1e-5)
    gradient = jax.grad(lambda x: kl_divergence(x, student, hidden=4).sum())(jnp.asarray(teacher))
    assert not gradient.any()


SETTINGS = dict(
    adapter__rank=4,
    loss__kind="distill",
    loss__cross_entropy=0.25,
    pretrained="x",
    optimizer__learning_rate=1e-3,
)


@functools.cache
def reference(family):
    return metrics_of(family, steps=5, **SETTINGS)


MESHES = [((1, 1, 1), 2), ((1, 1, 8), 2), ((2, 2, 2), 1)]


@pytest.mark.parametrize(
    ("family", "sizes", "accumulate"), [*(("llama", *mesh) for mesh in MESHES), ("t5", *MESHES[-1])]
)
def test_losses_of_an_adapter_do_not_depend_on_the_mesh(family, sizes, accumulate):
    settings = {**SETTINGS, "optimizer__accumulate": accumulate}
    losses, norms = metrics_of(family, sizes, steps=5, **settings)
    np.testing.assert_allclose(losses, reference(family)[0], rtol=1e-5)
    np.testing.assert_allclose(norms, reference(family)[1], rtol=1e-3)


def test_the_whole_model_learns_from_a_frozen_copy():
    """Without an adapter: the first loss is that of a student equal to its teacher, but for the mask."""
    losses = losses_of("llama", steps=3, loss__kind="distill", pretrained="x")
    assert 0 < losses[0] < 10 and losses[0] != losses[1]
