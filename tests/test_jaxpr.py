"""FLOPs of matmuls, against counts made by hand and by XLA."""

import functools

import jax
import jax.numpy as jnp
import pytest
from tiny import TINY

from gist_jax.cost_model.jaxpr import matmul_flops
from gist_jax.models import registry
from gist_jax.training.step import StepConfig, summed_loss


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_matmuls():
    assert matmul_flops(jnp.matmul, array(3, 5), b=array(5, 7)) == 2 * 3 * 5 * 7
    assert matmul_flops(jnp.add, array(3), array(3)) == 0
    attention = functools.partial(jnp.einsum, "btkgh,bskh->bkgts")
    assert matmul_flops(attention, array(2, 3, 4, 5, 6), array(2, 7, 4, 6)) == 2 * 2 * 3 * 4 * 5 * 6 * 7


def summed(x, kernels, checkpointed):
    def body(x, kernel):
        return jnp.tanh(x @ kernel) @ kernel, None

    return jax.lax.scan(jax.checkpoint(body) if checkpointed else body, x, kernels)[0].sum()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradient_of_a_scan(checkpointed):
    """Forward two matmuls, backward four, and one again where nothing was kept."""
    gradient = jax.jit(jax.grad(functools.partial(summed, checkpointed=checkpointed), argnums=1))
    matmul = 2 * 3 * 8 * 8
    expected = 5 * (7 if checkpointed else 6) * matmul
    assert matmul_flops(gradient, array(3, 8), array(5, 8, 8)) == expected


def test_cudnn_attention(monkeypatch):
    """Two matmuls, and five in the backward pass, which makes the logits again."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    q, k = (array(2, length, 4, 64, dtype=jnp.bfloat16) for length in (128, 256))
    bias, matmul = array(2, 1, 128, 256, dtype=jnp.bfloat16), 2 * 2 * 128 * 256 * 4 * 64
    assert matmul_flops(attention, q, k, k, bias) == 2 * matmul
    gradient = jax.grad(lambda *x: attention(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    assert matmul_flops(gradient, q, k, k, bias) == 7 * matmul


@jax.custom_vjp
def doubled(x):
    return 2 * (x @ x)


doubled.defvjp(lambda x: (doubled(x), x), lambda x, g: (2 * (g @ x.T + x.T @ g),))


squared = jax.custom_jvp(lambda x: x @ x)
squared.defjvps(lambda tangent, _, x: tangent @ x + x @ tangent)


def test_calls():
    x, matmul = array(6, 6), 2 * 6**3
    assert matmul_flops(doubled, x) == matmul
    assert matmul_flops(jax.value_and_grad(lambda x: doubled(x).sum()), x) == 3 * matmul
    assert matmul_flops(jax.grad(lambda x: doubled(x).sum()), x) == 2 * matmul  # without the value
    assert matmul_flops(jax.jit(lambda x: squared(x) @ x), x) == 2 * matmul
    assert matmul_flops(lambda x, t: jax.jvp(squared, (x,), (t,)), x, x) == 3 * matmul


def test_branches():
    """The most expensive counts."""

    def choose(x):
        return jax.lax.switch(x[0, 0].astype(int), [jnp.tanh, lambda x: x @ x @ x, lambda x: x @ x], x)

    def by_platform(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x @ x @ x)

    for function in (choose, by_platform):
        assert matmul_flops(function, array(6, 6)) == 2 * 2 * 6**3


def test_while_loops():
    def loop(body):
        return lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, body, x)

    assert matmul_flops(loop(jnp.tanh), array(6, 6)) == 0
    with pytest.raises(ValueError, match="matmuls in a while loop"):
        matmul_flops(loop(lambda x: x @ x), array(6, 6))


def test_xla_counts_the_same():
    """In a program without loops, of which element-wise operations are a small part."""

    def loss(kernels, x):
        for kernel in kernels:
            x = jnp.tanh(x @ kernel)
        return x.sum()

    arguments = [array(512, 512)] * 3, array(256, 512)
    ours = matmul_flops(jax.grad(loss), *arguments)
    xla = jax.jit(jax.grad(loss)).lower(*arguments).compile().cost_analysis()["flops"]
    assert ours < xla < 1.01 * ours


B, T, S = 8, 24, 7


def forward_flops(config):
    """FLOPs of the forward pass of a model: in layers, of them the last matmul of each, in all others.

    Attention is counted as it is computed, masked or not.
    """
    d, f, n, h = config.hidden_size, config.intermediate_size, config.num_heads, config.head_dim
    head, down = 2 * B * d * config.vocab_size, 2 * B * f * d
    query_and_output = key_and_value = 4 * B * d * n * h
    feed_forward = 6 * B * d * f

    def attended(queries, keys):
        return 4 * B * n * queries * keys * h

    if not config.is_encoder_decoder:
        key_and_value = 4 * B * d * config.num_kv_heads * h
        layer = T * (query_and_output + key_and_value + feed_forward) + attended(T, T)
        return config.num_layers * layer, config.num_layers * T * down, T * head
    encoder = T * (query_and_output + key_and_value + feed_forward) + attended(T, T)
    decoder = S * (2 * query_and_output + key_and_value + feed_forward) + T * key_and_value
    decoder += attended(S, S) + attended(S, T)
    layers = config.num_layers * encoder + config.num_decoder_layers * decoder
    last = (config.num_layers * T + config.num_decoder_layers * S) * down
    return layers, last, S * head


def biases(config):
    """FLOPs of T5's position biases: of one-hot buckets, which have no gradient."""
    return 2 * (T * T + S * S) * 32 * config.num_heads if config.is_encoder_decoder else 0


@pytest.mark.parametrize("remat", ["none", "full"])
def test_training(model_family, remat):
    """A gradient does every matmul twice again, and with `full` those in layers once more.

    Not the last matmul of a layer: nothing in its gradient depends on the result.
    """
    config = TINY[model_family]
    layers, last, head = forward_flops(config)
    expected = 3 * (layers + head) + 2 * biases(config)
    if remat == "full":
        expected += layers - last

    batch = {"tokens": array(B, T, dtype=jnp.int32), "segment": array(B, T, dtype=jnp.int32)}
    length = T
    if config.is_encoder_decoder:
        length = S
        batch |= {f"decoder_{name}": array(B, S, dtype=jnp.int32) for name in ("tokens", "segment")}
    batch |= {"targets": array(B, length, dtype=jnp.int32), "weights": array(B, length)}
    params = jax.eval_shape(lambda: registry.init(config, jax.random.key(0)))
    step_config = StepConfig("gist", gist_token=40, remat=remat)

    def loss(params, batch):
        return summed_loss(params, config, step_config, batch)

    assert matmul_flops(loss, params, batch) == layers + head + biases(config)
    assert matmul_flops(jax.grad(loss), params, batch) == expected
