"""Reads LLaMA checkpoints in Hugging Face format (config.json and safetensors)."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from gist_jax.models import llama
from gist_jax.models.config import LlamaConfig

# Hugging Face name ↔ path in our parameters. `{}` is the layer. A linear weight is stored as
# [out, in] there; ours is [in, out] with the heads apart.
LLAMA_WEIGHTS = {
    "model.embed_tokens.weight": "embedding",
    "model.layers.{}.input_layernorm.weight": "layers/attention_norm/scale",
    "model.layers.{}.self_attn.q_proj.weight": "layers/attention/query/kernel",
    "model.layers.{}.self_attn.k_proj.weight": "layers/attention/key/kernel",
    "model.layers.{}.self_attn.v_proj.weight": "layers/attention/value/kernel",
    "model.layers.{}.self_attn.o_proj.weight": "layers/attention/output/kernel",
    "model.layers.{}.post_attention_layernorm.weight": "layers/feed_forward_norm/scale",
    "model.layers.{}.mlp.gate_proj.weight": "layers/feed_forward/gate/kernel",
    "model.layers.{}.mlp.up_proj.weight": "layers/feed_forward/up/kernel",
    "model.layers.{}.mlp.down_proj.weight": "layers/feed_forward/down/kernel",
    "model.norm.weight": "norm/scale",
    "lm_head.weight": "head/kernel",
}
# Config fields that can ask for what is not computed here, with the only value that is.
PLAIN_FIELDS = {"rope_scaling": None, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}


def llama_config(fields: dict[str, Any]) -> LlamaConfig:
    """Our configuration from the fields of a config.json.

    Raises:
      ValueError: naming an architecture or a field that is not computed here.
    """
    if fields.get("model_type") != "llama":
        raise ValueError(f"model_type {fields.get('model_type')!r} is not supported, only 'llama'")
    rope = fields.get("rope_parameters") or {}  # written by transformers 5 in place of rope_theta
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type {rope['rope_type']!r} is not supported")
    for name, plain in PLAIN_FIELDS.items():
        if fields.get(name, plain) != plain:
            raise ValueError(f"config field {name} = {fields[name]!r} is not supported")
    try:
        heads, size = fields["num_attention_heads"], fields["hidden_size"]
        return LlamaConfig(
            vocab_size=fields["vocab_size"],
            hidden_size=size,
            intermediate_size=fields["intermediate_size"],
            num_layers=fields["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=fields.get("num_key_value_heads") or heads,
            head_dim=fields.get("head_dim") or size // heads,
            max_positions=fields.get("max_position_embeddings", 2048),
            rope_theta=rope.get("rope_theta", fields.get("rope_theta", 10_000.0)),
            norm_eps=fields.get("rms_norm_eps", 1e-6),
            tie_embeddings=fields.get("tie_word_embeddings", False),
            initializer_range=fields.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise ValueError(f"config.json has no field {error}") from None


def _open_shards(directory: pathlib.Path) -> dict[str, Any]:
    """Tensor name -> open safetensors file."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text()).get("weight_map")
        if not weight_map:
            raise ValueError(f"{index} has no weight_map")
        files = set(weight_map.values())
    else:
        files = {"model.safetensors"}
    tensors = {}
    for name in sorted(files):
        try:
            shard = safe_open(directory / name, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot read {directory / name}: {error}") from None
        tensors.update(dict.fromkeys(shard.keys(), shard))
    return tensors


def read_config(directory: str | pathlib.Path) -> dict[str, Any]:
    """The fields of a checkpoint's config.json.

    Raises:
      ValueError: if there is none or it is no JSON.
    """
    path = pathlib.Path(directory) / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def has_gist_token(fields: dict[str, Any], tokenizer_size: int) -> bool:
    """Whether a checkpoint was trained with the gist token of its tokenizer.

    It says so under the key "gist", or its vocabulary ends with that token, as in the published
    checkpoints. A vocabulary that is merely padded beyond the tokenizer's does not count.
    """
    return "gist" in fields or fields.get("vocab_size") == tokenizer_size


def load_llama(directory: str | pathlib.Path, dtype=None) -> tuple[LlamaConfig, llama.Params]:
    """Configuration and stacked parameters, NumPy arrays, of the checkpoint in a directory.

    Raises:
      ValueError: naming a file that cannot be read, or a tensor that is missing, left over or
        misshapen.
    """
    directory = pathlib.Path(directory)
    config = llama_config(read_config(directory))
    tensors = _open_shards(directory)
    shapes = jax.eval_shape(lambda: llama.init(config, jax.random.key(0)))
    expected = {"/".join(str(k.key) for k in path): s for path, s in jax.tree.leaves_with_path(shapes)}

    def read(name: str, shape) -> np.ndarray:
        if name not in tensors:
            raise ValueError(f"the checkpoint has no tensor {name}")
        value = tensors.pop(name).get_tensor(name)
        value = value.T if value.ndim == 2 and name != "model.embed_tokens.weight" else value
        if value.size != np.prod(shape):
            raise ValueError(f"tensor {name} has shape {value.shape}, which does not fit {shape}")
        return value.reshape(shape)

    params: llama.Params = {}
    for name, path in LLAMA_WEIGHTS.items():
        if path not in expected:  # the head of a model with tied embeddings
            tensors.pop(name, None)
            continue
        shape = expected[path].shape
        if "{}" in name:
            value = np.stack([read(name.format(i), shape[1:]) for i in range(config.num_layers)])
        else:
            value = read(name, shape)
        node, *parents, leaf = [params, *path.split("/")]
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value if dtype is None else value.astype(jnp.dtype(dtype))
    left_over = [name for name in tensors if not name.endswith("rotary_emb.inv_freq")]
    if left_over:
        raise ValueError(f"the checkpoint has tensors that LLaMA does not: {', '.join(left_over[:3])}")
    return config, params
