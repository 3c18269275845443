"""Parts of the models that golden figures do not reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gist_jax import gist
from gist_jax.interop.huggingface import llama_config
from gist_jax.models import llama
from gist_jax.models.layers import attend, attend_cached


def inputs(groups=2, length=5, slots=7, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    q = jax.random.normal(keys[0], (3, length, 2 * groups, 8))
    k, v = (jax.random.normal(key, (3, slots, 2, 8)) for key in keys[1:3])
    bias = gist.mask_to_bias(jax.random.bernoulli(keys[3], 0.7, (3, 1, length, slots)))
    return q, k, v, bias


@pytest.mark.parametrize("groups", [1, 2])
def test_cached_attention_equals_attention(groups):
    q, k, v, bias = inputs(groups)
    heads_first = k.swapaxes(1, 2), v.swapaxes(1, 2)
    blocks = [tuple(x[:, :, :3] for x in heads_first), tuple(x[:, :, 3:] for x in heads_first)]
    expected = attend(q, k, v, bias)
    np.testing.assert_allclose(attend_cached(q, blocks, bias), expected, atol=1e-5)


def test_a_shared_block_equals_a_repeated_one():
    q, k, v, bias = inputs()
    own = k.swapaxes(1, 2)[:, :, 2:], v.swapaxes(1, 2)[:, :, 2:]
    shared = tuple(x.swapaxes(1, 2)[:1, :, :2] for x in (k, v))
    repeated = tuple(jnp.repeat(x, 3, axis=0) for x in shared)
    ours, expected = (attend_cached(q, [block, own], bias) for block in (shared, repeated))
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_bias_that_does_not_fit_raises():
    q, k, v, bias = inputs()
    with pytest.raises(ValueError, match=r"the bias must be \[B, 1, T=5, S=7\]"):
        attend(q, k, v, bias[..., :6])


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scanned_layers_equal_separate_ones(tiny, remat):
    config, params = tiny
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, config.vocab_size)
    layout = gist.layout_of(tokens, 40)
    bias = gist.mask_to_bias(gist.decoder_mask(layout, "gist"))

    def score(params, separate):
        used = llama.unstacked(params) if separate else params
        out = llama.forward(used, config, tokens, gist.positions_of(layout.segment), bias, remat=remat)
        return jnp.sum(llama.logits(used, config, out.hidden) ** 2)

    ours, theirs = (jax.value_and_grad(score)(params, separate) for separate in (False, True))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()))


def test_tied_embeddings(tiny):
    import dataclasses

    config = dataclasses.replace(tiny[0], tie_embeddings=True)
    params = llama.init(config, jax.random.key(0))
    assert "head" not in params
    hidden = jax.random.normal(jax.random.key(1), (1, 2, config.hidden_size))
    expected = hidden @ params["embedding"].T
    np.testing.assert_allclose(llama.logits(params, config, hidden), expected, atol=1e-5)


def test_computation_in_bfloat16_with_float32_parameters(tiny):
    config, params = tiny
    tokens = jnp.array([[3, 4, 5]])
    bias = gist.mask_to_bias(gist.decoder_mask(gist.layout_of(tokens, 40), "gist"))
    positions = jnp.arange(3)[None]
    half = llama.forward(params, config, tokens, positions, bias, dtype="bfloat16").hidden
    whole = llama.forward(params, config, tokens, positions, bias).hidden
    assert half.dtype == "bfloat16" and whole.dtype == "float32"
    assert llama.logits(params, config, half).dtype == "float32"
    np.testing.assert_allclose(half.astype("float32"), whole, atol=0.3)


FIELDS = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def test_config_fields():
    assert llama_config({**FIELDS, "rope_theta": 5e5}).rope_theta == 5e5
    assert llama_config({**FIELDS, "rope_parameters": {"rope_theta": 5e5}}).rope_theta == 5e5
    assert llama_config({**FIELDS, "num_key_value_heads": 1}).num_kv_heads == 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "config field rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
        ({"attention_bias": True}, "config field attention_bias = True"),
    ],
)
def test_config_fields_that_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        llama_config({**FIELDS, **fields})
