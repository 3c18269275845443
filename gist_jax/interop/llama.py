"""LLaMA, Mistral, Qwen2 and Qwen3 in Hugging Face format: config.json and the names of the weights."""

from collections.abc import Collection, Mapping
from typing import Any

from gist_jax.errors import UserError
from gist_jax.interop.fields import check_fields
from gist_jax.models.config import LlamaConfig

# model_type -> class in transformers.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
MODEL_TYPES = tuple(ARCHITECTURES)
# What transformers takes for a field that is not there, where it is not what LLaMA has.
DEFAULTS = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
    },
    "qwen3": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "use_sliding_window": False,
    },
}
_READ = """
    head_dim hidden_size intermediate_size layer_types max_position_embeddings num_attention_heads
    num_hidden_layers num_key_value_heads rms_norm_eps rope_parameters rope_scaling rope_theta
    sliding_window tie_word_embeddings use_sliding_window vocab_size
"""
READ = frozenset(_READ.split())
SUPPORTED_VALUES = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1.0, None),
}
# Of the scaling of rotary positions: its fields -> ours.
ROPE_FIELDS = {
    "default": {},
    "dynamic": {"factor": "rope_factor"},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
        "original_max_position_embeddings": "rope_original_positions",
    },
}

_WEIGHTS = {
    "model.embed_tokens.weight": "embedding",
    "model.layers.{}.input_layernorm.weight": "layers/attention_norm/scale",
    "model.layers.{}.self_attn.q_proj.weight": "layers/attention/query/kernel",
    "model.layers.{}.self_attn.k_proj.weight": "layers/attention/key/kernel",
    "model.layers.{}.self_attn.v_proj.weight": "layers/attention/value/kernel",
    "model.layers.{}.self_attn.o_proj.weight": "layers/attention/output/kernel",
    "model.layers.{}.self_attn.q_proj.bias": "layers/attention/query/bias",
    "model.layers.{}.self_attn.k_proj.bias": "layers/attention/key/bias",
    "model.layers.{}.self_attn.v_proj.bias": "layers/attention/value/bias",
    "model.layers.{}.self_attn.q_norm.weight": "layers/query_norm/scale",
    "model.layers.{}.self_attn.k_norm.weight": "layers/key_norm/scale",
    "model.layers.{}.post_attention_layernorm.weight": "layers/feed_forward_norm/scale",
    "model.layers.{}.mlp.gate_proj.weight": "layers/feed_forward/gate/kernel",
    "model.layers.{}.mlp.up_proj.weight": "layers/feed_forward/up/kernel",
    "model.layers.{}.mlp.down_proj.weight": "layers/feed_forward/down/kernel",
    "model.norm.weight": "norm/scale",
    "lm_head.weight": "head/kernel",
}


def weights(config: LlamaConfig) -> Mapping[str, str]:
    """Hugging Face name -> path in our parameters, some of which a model may not have."""
    return _WEIGHTS


def is_ignored(name: str, config: LlamaConfig) -> bool:
    """Whether a tensor is nothing to read: a constant, or a copy of the embedding."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_embeddings and name == "lm_head.weight")


def read_config(fields: Mapping[str, Any], names: Collection[str]) -> LlamaConfig:
    """Our configuration from the fields of a config.json.

    Within a sliding window its attention is plain, and up to its positions "dynamic" scaling changes
    nothing: such models are read with no more positions than that.

    Raises:
      ValueError: naming a field that is not computed here.
      KeyError: for a field that is missing.
    """
    check_fields(fields, READ, SUPPORTED_VALUES)
    kind = fields["model_type"]
    fields = {**DEFAULTS[kind], **fields}
    layers = set(fields.get("layer_types") or ())
    if layers - {"full_attention", "sliding_attention"}:
        raise UserError(f"config field layer_types = {fields['layer_types']!r} is not supported")
    positions, window = fields["max_position_embeddings"], fields.get("sliding_window")
    if window and (fields.get("use_sliding_window", True) or "sliding_attention" in layers):
        positions = min(positions, window)
    heads, size = fields["num_attention_heads"], fields["hidden_size"]
    return LlamaConfig(
        kind=kind,
        vocab_size=fields["vocab_size"],
        hidden_size=size,
        intermediate_size=fields["intermediate_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or size // heads,
        max_positions=positions,
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        tie_embeddings=fields.get("tie_word_embeddings", False),
        initializer_range=fields.get("initializer_range", 0.02),
        **_read_rope(fields),
    )


def _read_rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes rope_parameters, in place of rope_theta and rope_scaling."""
    rope = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    theta = float(rope.pop("rope_theta", fields.get("rope_theta", 10_000.0)))
    older_name = rope.pop("type", "default")
    kind = rope.pop("rope_type", older_name)
    if kind not in ROPE_FIELDS:
        raise UserError(f"rope_type {kind!r} is not supported, only {', '.join(ROPE_FIELDS)}")
    names = ROPE_FIELDS[kind]
    for name, value in rope.items():
        if name not in names and not (name == "partial_rotary_factor" and value == 1):
            raise UserError(f"{name} = {value!r} of rope_type {kind!r} is not supported")
    scaling = {ours: rope[theirs] for theirs, ours in names.items()}
    return {"rope_theta": theta, "rope_scaling": "none" if kind == "default" else kind, **scaling}


def write_config(config: LlamaConfig) -> dict[str, Any]:
    """Fields of a config.json that transformers 4 and 5 both read."""
    kind = "default" if config.rope_scaling == "none" else config.rope_scaling
    scaling = {theirs: getattr(config, ours) for theirs, ours in ROPE_FIELDS[kind].items()}
    fields = {
        "model_type": config.kind,
        "architectures": [ARCHITECTURES[config.kind]],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **scaling},
        "rope_parameters": {"rope_type": kind, "rope_theta": config.rope_theta, **scaling},
    }
    if config.kind == "mistral":
        fields["sliding_window"] = None  # see read_config
    return fields
