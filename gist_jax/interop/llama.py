"""LLaMA in Hugging Face format: its config.json and the names of its weights."""

from collections.abc import Collection
from typing import Any

from gist_jax.errors import UserError
from gist_jax.models.config import LlamaConfig

WEIGHTS = {
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


def read_config(fields: dict[str, Any], names: Collection[str]) -> LlamaConfig:
    """Our configuration from the fields of a config.json.

    Raises:
      ValueError: naming a field that is not computed here.
      KeyError: for a field that is missing.
    """
    rope = fields.get("rope_parameters") or {}  # written by transformers 5 in place of rope_theta
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"rope_type {rope['rope_type']!r} is not supported")
    for name, plain in PLAIN_FIELDS.items():
        if fields.get(name, plain) != plain:
            raise UserError(f"config field {name} = {fields[name]!r} is not supported")
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


def weights(config: LlamaConfig) -> dict[str, str]:
    """Hugging Face name -> path in our parameters."""
    return WEIGHTS


def is_left_out(name: str, config: LlamaConfig) -> bool:
    """Whether a tensor is nothing to read: a constant, or a copy of the embedding."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_embeddings and name == "lm_head.weight")
