"""Reads LLaMA checkpoints in Hugging Face format (config.json and safetensors)."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from gist_jax.errors import UserError
from gist_jax.files import read_json
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
        raise UserError(f"model_type {fields.get('model_type')!r} is not supported, only 'llama'")
    rope = fields.get("rope_parameters") or {}  # written by transformers 5 in place of rope_theta
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"rope_type {rope['rope_type']!r} is not supported")
    for name, plain in PLAIN_FIELDS.items():
        if fields.get(name, plain) != plain:
            raise UserError(f"config field {name} = {fields[name]!r} is not supported")
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
        raise UserError(f"config.json has no field {error}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"config.json describes no model: {error}") from None


class Checkpoint:
    """A LLaMA checkpoint in a directory: opened and checked, but not yet read."""

    def __init__(self, directory: str | pathlib.Path):
        """Opens a checkpoint.

        Raises:
          UserError: naming a file that cannot be read, or a tensor that is missing, left over or
            misshapen.
        """
        directory = pathlib.Path(directory)
        self.fields = read_json(directory / "config.json")
        self.config = llama_config(self.fields)
        self._tensors = _open_shards(directory)
        self._names = _expected(self.config)
        for name, shape in self._names.items():
            if name not in self._tensors:
                raise UserError(f"{directory} has no tensor {name}")
            found = tuple(self._tensors[name].get_slice(name).get_shape())
            if found != shape:
                raise UserError(f"tensor {name} of {directory} has shape {found}, not {shape}")
        left_over = [
            name
            for name in self._tensors
            if name not in self._names
            and not name.endswith("rotary_emb.inv_freq")
            # Some checkpoints keep a copy of the embedding that the head is tied to.
            and not (self.config.tie_embeddings and name == "lm_head.weight")
        ]
        if left_over:
            raise UserError(f"{directory} has tensors that LLaMA does not: {', '.join(left_over[:3])}")

    def has_gist_token(self, tokenizer_size: int) -> bool:
        """Whether the model was trained with the gist token of a tokenizer of that many entries.

        It says so under the key "gist", or its vocabulary ends with that token, as in the published
        checkpoints. A vocabulary that is merely padded beyond the tokenizer's does not count.
        """
        return "gist" in self.fields or self.config.vocab_size == tokenizer_size

    def read(self, dtype=None) -> llama.Params:
        """The parameters with stacked layers, NumPy arrays of `dtype` (None: as they are stored)."""
        params: llama.Params = {}
        for path, shape in _shapes(self.config).items():
            pattern = _PATTERNS[path]
            if "{}" in pattern:
                layers = range(self.config.num_layers)
                value = np.stack([self._tensor(pattern.format(i), shape[1:]) for i in layers])
            else:
                value = self._tensor(pattern, shape)
            node, *parents, leaf = [params, *path.split("/")]
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value if dtype is None else value.astype(jnp.dtype(dtype))
        return params

    def _tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        value = np.asarray(self._tensors[name].get_tensor(name))
        return (value if _is_kept(name) else value.T).reshape(shape)


_PATTERNS = {path: name for name, path in LLAMA_WEIGHTS.items()}


def _is_kept(name: str) -> bool:
    """Whether a tensor is stored as we use it; all others are transposed linear weights."""
    return name.endswith(("norm.weight", "embed_tokens.weight"))


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Path of every parameter -> its shape with stacked layers."""
    shapes = jax.eval_shape(lambda: llama.init(config, jax.random.key(0)))
    return {
        "/".join(str(k.key) for k in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(shapes)
    }


def _expected(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name of every tensor of a checkpoint -> the shape it must be stored with."""
    names = {}
    for path, shape in _shapes(config).items():
        pattern = _PATTERNS[path]
        layered = "{}" in pattern
        shape = shape[1:] if layered else shape
        if not _is_kept(pattern):
            # Heads and their dimensions are one dimension there, and out comes before in.
            inputs = shape[:-1] if path.endswith("output/kernel") else shape[:1]
            shape = (math.prod(shape) // math.prod(inputs), math.prod(inputs))
        for i in range(config.num_layers if layered else 1):
            names[pattern.format(i)] = shape
    return names


def _open_shards(directory: pathlib.Path) -> dict[str, Any]:
    """Tensor name -> open safetensors file."""
    index = directory / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index} has no weight_map")
        files = set(weight_map.values())
    tensors = {}
    for name in sorted(files):
        try:
            shard = safe_open(directory / name, framework="flax")
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {directory / name}: {error}") from None
        tensors.update(dict.fromkeys(shard.keys(), shard))
    return tensors
