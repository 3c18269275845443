"""LLaMA (arXiv 2302.13971) in Flax NNX, used functionally.

Everything outside this file sees parameters as nested dicts of arrays. In training the layers are one
dict of arrays stacked `[L, …]` and scanned; for inference `unstacked` makes them a dict per layer, so
that every layer updates a cache of its own in place.

Shape letters: B batch, T query length, S key length, P prefix length, D model dim, F feed-forward
dim, N heads, K key/value heads, H head dim, V vocabulary, L layers.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gist_jax.models.cache import KVCache, write
from gist_jax.models.config import LlamaConfig
from gist_jax.models.layers import (
    KeyValue,
    Projection,
    RMSNorm,
    attend,
    attend_cached,
    normal_param,
    rotary_angles,
    rotate,
)

Params = dict[str, Any]

# What the backward pass keeps of each scanned layer.
REMAT_POLICIES = {
    "none": None,  # keep everything
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep matrix products
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only the input of each layer
}


class Output(NamedTuple):
    """What `forward` returns."""

    hidden: jax.Array  # [B, T, D], after the final norm
    cache: KVCache | None  # with unstacked layers: the given cache with T new slots, or just those


class Attention(nnx.Module):
    def __init__(self, config: LlamaConfig, dtype, rngs: nnx.Rngs):
        d, n, k, h = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        into = ("embed", "heads", "head_dim")
        options = dict(stddev=config.initializer_range, dtype=dtype, rngs=rngs)
        self.query = Projection("btd,dnh->btnh", (d, n, h), into, **options)
        self.key = Projection("btd,dkh->btkh", (d, k, h), into, **options)
        self.value = Projection("btd,dkh->btkh", (d, k, h), into, **options)
        self.output = Projection("btnh,nhd->btd", (n, h, d), into[1:] + into[:1], **options)

    def __call__(self, x, angles, bias, past, slot, prefix, implementation):
        q, k, v = rotate(self.query(x), angles), rotate(self.key(x), angles), self.value(x)
        new = k.swapaxes(1, 2), v.swapaxes(1, 2)
        if past is not None:
            new = write(past[0], new[0], slot), write(past[1], new[1], slot)
        if past is None and prefix is None:
            out = attend(q, k, v, bias, implementation=implementation)
        else:
            out = attend_cached(q, [new] if prefix is None else [prefix, new], bias)
        return self.output(out), new


class FeedForward(nnx.Module):
    def __init__(self, config: LlamaConfig, dtype, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        options = dict(stddev=config.initializer_range, dtype=dtype, rngs=rngs)
        self.gate = Projection("btd,df->btf", (d, f), ("embed", "mlp"), **options)
        self.up = Projection("btd,df->btf", (d, f), ("embed", "mlp"), **options)
        self.down = Projection("btf,fd->btd", (f, d), ("mlp", "embed"), **options)

    def __call__(self, x):
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    def __init__(self, config: LlamaConfig, dtype, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype)
        self.attention = Attention(config, dtype, rngs)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype)
        self.feed_forward = FeedForward(config, dtype, rngs)

    def __call__(self, x, angles, bias, past=None, slot=None, prefix=None, implementation=None):
        attended, key_value = self.attention(
            self.attention_norm(x), angles, bias, past, slot, prefix, implementation
        )
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), key_value


class Llama(nnx.Module):
    """The parameters of a model; `stacked` chooses between scanned and separate layers."""

    def __init__(self, config: LlamaConfig, dtype, stacked: bool, rngs: nnx.Rngs):
        v, d, stddev = config.vocab_size, config.hidden_size, config.initializer_range
        self.embedding = normal_param(rngs, (v, d), ("vocab", "embed"), stddev, dtype)
        if stacked:

            @nnx.split_rngs(splits=config.num_layers)
            @nnx.vmap
            def blocks(rngs):
                return Block(config, dtype, rngs)

            self.layers = blocks(rngs)
        else:
            self.layers = nnx.List(Block(config, dtype, rngs) for _ in range(config.num_layers))
        self.norm = RMSNorm(d, config.norm_eps, dtype)
        if not config.tie_embeddings:
            self.head = Projection("btd,dv->btv", (d, v), ("embed", "vocab"), stddev, dtype, rngs)


def init(config: LlamaConfig, key: jax.Array, dtype=jnp.float32) -> Params:
    """Random parameters with stacked layers: nested dict of arrays of `dtype`."""
    model = Llama(config, dtype, stacked=True, rngs=nnx.Rngs(params=key))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@functools.lru_cache
def _abstract(config: LlamaConfig, stacked: bool):
    """Structure and abstract state of a model, without computing a single parameter."""
    return nnx.split(nnx.eval_shape(lambda: Llama(config, jnp.float32, stacked, nnx.Rngs(params=0))))


def logical_axes(config: LlamaConfig) -> Params:
    """The name of every dimension of every stacked parameter: nested dict of tuples of str."""
    _, state = _abstract(config, True)
    axes = nnx.to_pure_dict(
        jax.tree.map(
            lambda p: p.get_metadata()["axes"], state, is_leaf=lambda p: isinstance(p, nnx.Variable)
        )
    )
    axes["layers"] = jax.tree.map(
        lambda a: ("layers", *a), axes["layers"], is_leaf=lambda a: isinstance(a, tuple)
    )
    return axes


def unstacked(params: Params) -> Params:
    """The same parameters with one dict per layer, `{"layers": {0: …, 1: …}}`, for inference."""
    num_layers = jax.tree.leaves(params["layers"])[0].shape[0]

    def layer(i: int) -> Params:
        return jax.tree.map(lambda x: x[i], params["layers"])

    return {**params, "layers": {i: layer(i) for i in range(num_layers)}}


def forward(
    params: Params,
    config: LlamaConfig,
    tokens: jax.Array,
    positions: jax.Array,
    bias: jax.Array,
    *,
    cache: KVCache | None = None,
    slot: int | jax.Array | None = None,
    prefix: KVCache | None = None,
    remat: str = "none",
    dtype=None,
    implementation: str | None = None,
) -> Output:
    """Runs the model up to its final norm.

    Args:
      params: from `init` (layers stacked: they are scanned, and no cache is returned) or from
        `unstacked` (layers apart: keys and values are returned).
      config: static.
      tokens: int `[B, T]` token ids, or floating `[B, T, D]` embeddings in their place.
      positions: int `[B, T]`.
      bias: additive attention bias `[B, 1, T, P + S]`, see `gist_jax.gist`; S is T without a cache.
      cache: of S slots per row; the new keys and values are written into it.
      slot: the first slot to write, the same for all rows.
      prefix: read-only keys and values of P slots that stand before all others, batch B or 1.
      remat: name in REMAT_POLICIES, for scanned layers.
      dtype: of the computation; that of the embedding by default.
      implementation: of attention over whole sequences, see `layers.attend`.

    Returns:
      Final hidden states and, with unstacked layers, the cache.
    """
    stacked = 0 not in params["layers"]
    if stacked and (cache is not None or prefix is not None):
        raise ValueError("caches need layers apart: call unstacked(params) once before inference")
    model = nnx.merge(_abstract(config, stacked)[0], params)
    dtype = dtype or model.embedding.dtype
    if jnp.issubdtype(tokens.dtype, jnp.integer):
        x = jnp.take(model.embedding[...], tokens, axis=0).astype(dtype)
    else:
        x = tokens.astype(dtype)
    angles = rotary_angles(positions, config.head_dim, config.rope_theta)

    if stacked:
        x = _scan(model.layers, x, angles, bias, remat, implementation)
        return Output(model.norm(x), None)
    key_values: list[KeyValue] = []
    for i, block in enumerate(model.layers):
        past = cache.layer(i) if cache is not None else None
        before = prefix.layer(i) if prefix is not None else None
        x, key_value = block(x, angles, bias, past, slot, before, implementation)
        key_values.append(key_value)
    return Output(model.norm(x), KVCache(*(tuple(side) for side in zip(*key_values, strict=True))))


def _scan(layers: Block, x, angles, bias, remat: str, implementation):
    structure, stacked = nnx.split(layers)

    def body(x, layer):
        x, _ = nnx.merge(structure, layer)(x, angles, bias, implementation=implementation)
        return x, None

    policy = REMAT_POLICIES[remat]
    if policy is not None:
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(body, x, stacked)[0]


def logits(params: Params, config: LlamaConfig, hidden: jax.Array) -> jax.Array:
    """Scores of the next token: float32 `[B, T, V]` from hidden states `[B, T, D]`."""
    if config.tie_embeddings:
        equation, kernel = "btd,vd->btv", params["embedding"]
    else:
        equation, kernel = "btd,dv->btv", params["head"]["kernel"]
    kernel = kernel.astype(hidden.dtype)
    return jnp.einsum(equation, hidden, kernel, preferred_element_type=jnp.float32)
