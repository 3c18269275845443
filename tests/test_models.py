"""Parts of the models that golden results do not reach."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY

from gist_jax import gist
from gist_jax.cost_model.jaxpr import matmul_flops, subjaxprs
from gist_jax.inference.fingerprint import base_fingerprint
from gist_jax.inference.parameters import for_inference
from gist_jax.interop.huggingface import read_config
from gist_jax.models import attention, registry
from gist_jax.models.attention import attend, attend_cached
from gist_jax.models.cache import KVCache
from gist_jax.models.model import DecodeState, Tokens
from gist_jax.models.registry import merge
from gist_jax.models.stack import unstacked
from gist_jax.models.t5 import relative_bucket
from gist_jax.training.step import StepConfig, summed_loss


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


@pytest.mark.parametrize(("causal", "size"), [(True, 4), (False, 4), (True, 9)])
def test_attention_in_blocks_equals_attention(causal, size, monkeypatch):
    """With its gradients, where rows do not divide into blocks and some see nothing."""
    monkeypatch.setattr(attention, "_block_size", lambda *_: size)
    q, k, v, bias = inputs(length=9, slots=9)
    mask = (bias == 0) & (gist.causal(9, 9) if causal else True)
    mask = mask.at[1, :, 2:5].set(False)
    bias, visible = gist.mask_to_bias(mask), mask.any(-1)[:, 0, :, None, None]

    def results(implementation):
        def total(q, k, v):
            out = attend(q, k, v, bias, causal=causal, implementation=implementation)
            # What rows that see nothing get does not matter: the mean of the values, or of some.
            seen = jnp.where(visible, out, 0)
            return jnp.vdot(seen, jnp.sin(jnp.arange(out.size)).reshape(out.shape)), (seen, out)

        return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    results = jax.jit(results, static_argnums=0)
    (total, (seen, everything)), grads = results("blocks")
    (expected_total, (expected, _)), expected_grads = results("xla")
    assert np.isfinite(everything).all()
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, (total, seen, grads), (expected_total, expected, expected_grads))


def test_attention_in_bfloat16():
    """Its gradients are rounded, and no more."""
    q, k, v, bias = inputs(length=7)

    def gradients(dtype):
        def total(*arrays):
            out = attend(*(x.astype(dtype) for x in arrays), bias.astype(dtype)).astype(jnp.float32)
            return jnp.vdot(out, jnp.sin(jnp.arange(out.size)).reshape(out.shape))

        with jax.numpy_dtype_promotion("standard"):  # which JAX itself needs to compile it
            return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)

    close = functools.partial(np.testing.assert_allclose, atol=0.05)
    jax.tree.map(close, gradients(jnp.bfloat16), gradients(jnp.float32))


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_long_rows_have_no_logits_of_all_pairs(remat, monkeypatch):
    """The loss and the gradients at 512 tokens are those of whole attention, without its arrays."""
    monkeypatch.setattr(attention, "_block_size", lambda *_: 128)
    config = dataclasses.replace(TINY["llama"], max_positions=512)
    params = registry.init(config, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 41, (2, 512)).astype(np.int32)
    segment = np.broadcast_to(np.arange(512) // 300 + 1, (2, 512)).astype(np.int32)
    weights = np.ones((2, 512), np.float32)
    batch = dict(tokens=tokens, segment=segment, targets=tokens, weights=weights)
    found, flops = {}, {}
    for name in ("blocks", "xla"):
        step_config = StepConfig("gist", 40, attention=name, remat=remat)
        gradient = jax.jit(
            jax.value_and_grad(lambda p, c=step_config: summed_loss(p, config, c, batch) / weights.sum())
        )
        pairs = 2 * config.num_heads * 512 * 512
        largest = max(math.prod(shape) for shape in shapes_of(gradient.trace(params).jaxpr.jaxpr))
        assert (largest < pairs) == (name == "blocks")
        found[name], flops[name] = gradient(params), matmul_flops(gradient, params)
    (loss, grads), (expected_loss, expected_grads) = found["blocks"], found["xla"]
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, expected_grads)
    # Of 16 squares of 128 tokens 10 are computed: in 2 matmuls, in 4 of the backward pass, in 2 again,
    # or in 4 if nothing is kept of a layer. Where matmuls are kept, so is what was attended to.
    square = 2 * 2 * 2 * config.num_heads * config.head_dim * 128**2  # a matmul, of all layers and rows
    whole, of_blocks = {"none": (6, 8), "dots": (8, 8), "full": (8, 10)}[remat]
    assert flops["xla"] - flops["blocks"] == square * (16 * whole - 10 * of_blocks)


def shapes_of(jaxpr):
    """The shapes of all arrays that a program makes, those of loops inside of it too."""
    for equation in jaxpr.eqns:
        yield from (x.aval.shape for x in equation.outvars)
        for value in equation.params.values():
            for inner in subjaxprs(value):
                yield from shapes_of(inner)


def test_a_bias_that_does_not_fit_raises():
    q, k, v, bias = inputs()
    with pytest.raises(ValueError, match=r"the bias must be \[B, 1, T=5, S=7\]"):
        attend(q, k, v, bias[..., :6])


def sequences(config):
    """A prompt, and an output where that is a sequence of its own."""
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 40)
    layout = gist.layout_of(tokens.at[:, 4].set(40), 40)
    mask = gist.attention_mask(layout, "gist", bidirectional=config.is_encoder_decoder)
    inputs = Tokens(tokens, gist.positions_of(layout.segment), gist.mask_to_bias(mask))
    if not config.is_encoder_decoder:
        return [inputs]
    output = gist.following(layout, jnp.ones((2, 3), jnp.int32))
    mask = gist.attention_mask(output, "gist", before=layout)
    positions = gist.positions_of(output.segment)
    return [inputs, Tokens(tokens[:, :3], positions, gist.mask_to_bias(mask))]


def unrolled_forward(model, config, inputs, decoder_inputs=None):
    """Final hidden states as inference computes them: layer by layer, and an output token by token."""
    hidden, memory = model.prefill(inputs)
    if decoder_inputs is None:
        return hidden
    context, length = [model.context_kv(memory)], decoder_inputs.ids.shape[1]
    shape = 2, config.num_heads, length, config.head_dim
    cache = KVCache.empty(config.num_decoder_layers, shape, "float32")
    state, steps = DecodeState(cache, jnp.int32(0), jnp.zeros((1, 1), jnp.int32)), []
    for t in range(length):
        ids, bias = decoder_inputs.ids[:, t : t + 1], decoder_inputs.bias[:, :, t : t + 1]
        hidden, state = model.decode_step(ids, bias, context, state)
        steps.append(hidden)
    return jnp.concatenate(steps, axis=1)


def test_scanned_layers_equal_unrolled_ones(tiny):
    """Whatever is kept of them for the gradient."""
    config, params = tiny

    def loss(params, remat):
        model = merge(params if remat else unstacked(params), config)
        if remat:
            hidden = model.forward(*sequences(config), remat=remat)
        else:
            hidden = unrolled_forward(model, config, *sequences(config))
        return jnp.sum(model.logits(hidden) ** 2)

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    theirs = gradient(params, None)
    for remat in ("none", "full") if config.is_encoder_decoder else ("none", "dots", "full"):
        ours = gradient(params, remat)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
        for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("tied", [False, True])
def test_heads(tiny, tied):
    config = dataclasses.replace(tiny[0], tie_embeddings=tied)
    configs = {1.0: config}
    if config.family == "t5":
        scale = config.hidden_size**-0.5
        configs = {1.0: config, scale: dataclasses.replace(config, scale_outputs=True)}
    hidden = jax.random.normal(jax.random.key(1), (1, 2, config.hidden_size))
    for scale, config in configs.items():
        params = registry.init(config, jax.random.key(0))
        assert ("head" in params) == (not tied)
        kernel = params["embedding"].T if tied else params["head"]["kernel"]
        expected = scale * hidden @ kernel
        np.testing.assert_allclose(merge(params, config).logits(hidden), expected, atol=1e-5)


def test_computation_in_bfloat16_with_float32_parameters(tiny):
    config, params = tiny
    model = merge(params, config)
    half = model.forward(*sequences(config), dtype="bfloat16")
    whole = model.forward(*sequences(config))
    assert half.dtype == "bfloat16" and whole.dtype == "float32"
    assert model.logits(half).dtype == "float32"
    error = jnp.abs(half.astype("float32") - whole)
    assert 0 < error.mean() < 0.1 * jnp.abs(whole).mean()


def published_bucket(distance: int, num_buckets: int, max_distance: int, bidirectional: bool) -> int:
    """Section 2.1 of the paper in plain Python; edges are where the logarithm is a whole number."""
    side = num_buckets // 2 if bidirectional else num_buckets
    first = side if bidirectional and distance > 0 else 0
    behind = abs(distance) if bidirectional else max(-distance, 0)
    if behind < side // 2:
        return first + behind
    fraction = math.log(behind / (side // 2)) / math.log(max_distance / (side // 2))
    return first + min(side // 2 + math.floor(fraction * (side - side // 2) + 1e-9), side - 1)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("sizes", [(32, 128), (8, 20)])
def test_relative_buckets(sizes, bidirectional):
    distances = np.arange(-300, 301)
    ours = relative_bucket(jnp.asarray(distances), *sizes, bidirectional)
    expected = [published_bucket(int(d), *sizes, bidirectional) for d in distances]
    np.testing.assert_array_equal(ours, expected)


FIELDS = {
    "llama": {
        "model_type": "llama",
        "vocab_size": 10,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "t5": {
        "model_type": "t5",
        "vocab_size": 10,
        "d_model": 8,
        "d_ff": 8,
        "d_kv": 4,
        "num_layers": 1,
        "num_heads": 2,
    },
}


def config_of(kind, names=(), **fields):
    return read_config(FIELDS[kind] | fields, names)


def test_llama_fields():
    assert config_of("llama", rope_theta=5e5).rope_theta == 5e5
    assert config_of("llama", rope_parameters={"rope_theta": 5e5}).rope_theta == 5e5
    assert config_of("llama", num_key_value_heads=1).num_kv_heads == 1
    assert config_of("llama", is_llama_config=True, rope_interleaved=False).kind == "llama"
    assert config_of("llama", max_sequence_length=2048, architectures=["GistLlamaForCausalLM"])
    mistral = dict(model_type="mistral", num_key_value_heads=1, max_position_embeddings=9000)
    assert config_of("llama", **mistral).max_positions == 4096  # of the window that is the default
    assert config_of("llama", **mistral, sliding_window=None).max_positions == 9000
    qwen = dict(model_type="qwen2", num_key_value_heads=1, sliding_window=100)
    assert config_of("llama", **qwen).max_positions == 32_768
    assert config_of("llama", **qwen, use_sliding_window=True).max_positions == 100


def test_t5_fields():
    """Of v1.0 and of v1.1, as transformers 4 and as transformers 5 write them."""

    def head(*names, **fields):
        config = config_of("t5", names, **fields)
        return config.tie_embeddings, config.scale_outputs

    assert head() == (True, True)
    assert head("lm_head.weight", tie_word_embeddings=False) == (False, False)
    assert head(tie_word_embeddings=True, scale_decoder_outputs=True) == (True, True)
    later = dict(tie_word_embeddings=True, scale_decoder_outputs=False)
    assert head("lm_head.weight", **later) == (False, False)
    assert head(**later) == (True, False)
    assert not config_of("t5").gated_gelu
    assert config_of("t5", feed_forward_proj="gated-gelu").gated_gelu
    assert config_of("t5").num_decoder_layers == 1
    assert config_of("t5", decoder_start_token_id=None, pad_token_id=3).decoder_start_token == 3
    assert config_of("t5", decoder_start_token_id=None, pad_token_id=None).decoder_start_token == 0


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "has no field 'factor'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "x": 1}}, "x = 1 of rope_type"),
        ("llama", {"quantize": "int4"}, "config field quantize = 'int4' is not known"),
        ("llama", {"model_type": "gpt2"}, "model_type 'gpt2' is not supported, only llama, mis"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
        ("llama", {"attention_bias": True}, "config field attention_bias = True"),
        ("t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj = 'gated-silu'"),
        ("t5", {"decoder_start_token_id": 10}, r"decoder_start_token \(10\) is no token"),
        ("t5", {"decoder_start_token_id": -1}, "decoder_start_token of a model must be at least 0"),
        ("t5", {"num_layers": 0}, "num_layers of a model must be at least 1"),
        ("t5", {"relative_attention_num_buckets": 30}, "must be a multiple of 4"),
    ],
)
def test_config_fields_that_are_refused(kind, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_of(kind, **fields)


def test_transposed_kernels_change_nothing(tiny):
    """For few tokens, which a CPU multiplies the other way round, and for many."""
    config, params = tiny
    plain = unstacked(params)
    turned = for_inference(params, "float32", config, None)
    assert base_fingerprint(turned, config) == base_fingerprint(plain, config)
    axes = registry.logical_axes(config, stacked=False, transposed=True)
    assert jax.tree.structure(turned) == jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple))

    @jax.jit
    def run(params, ids):
        model, length = merge(params, config), ids.shape[1]
        tokens = Tokens(ids, jnp.arange(length)[None], jnp.zeros((1, 1, length, length)))
        hidden, memory = model.prefill(tokens)
        return hidden, memory, model.context_kv(memory), model.logits(hidden)

    for length in (4, 80):
        ids = jax.random.randint(jax.random.key(length), (2, length), 3, config.vocab_size)
        equal = functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4)
        jax.tree.map(equal, run(plain, ids), run(turned, ids))
