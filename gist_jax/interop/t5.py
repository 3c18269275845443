"""T5 v1.0, v1.1 and FLAN-T5 in Hugging Face format: config.json and the names of the weights."""

from collections.abc import Collection, Mapping
from typing import Any

from gist_jax.errors import UserError
from gist_jax.interop.fields import check_fields
from gist_jax.models.config import T5Config

MODEL_TYPES = ("t5",)
_READ = """
    d_ff d_kv d_model decoder_start_token_id dropout_rate feed_forward_proj layer_norm_epsilon
    num_decoder_layers num_heads num_layers relative_attention_max_distance
    relative_attention_num_buckets scale_decoder_outputs tie_word_embeddings vocab_size
"""
READ = frozenset(_READ.split())
# Besides what feed_forward_proj says already.
SUPPORTED_VALUES = {
    "is_encoder_decoder": (True,),
    "is_decoder": (False,),
    "dense_act_fn": ("relu", "gelu_new"),
    "is_gated_act": (False, True),
}

HEAD = "lm_head.weight"
# Copies of the embedding, and a table that no model uses but old checkpoints hold.
IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
FEED_FORWARD = {"relu": False, "gated-gelu": True}


def read_config(fields: Mapping[str, Any], names: Collection[str]) -> T5Config:
    """Our configuration from the fields of a config.json and the names of its tensors.

    transformers 4 wrote `tie_word_embeddings`, and scaled outputs where the embeddings are tied;
    transformers 5 always writes it as true, `scale_decoder_outputs` by itself, and a head where one is
    not tied.

    Raises:
      ValueError: naming a field that is not computed here.
      KeyError: for a field that is missing.
    """
    check_fields(fields, READ, SUPPORTED_VALUES)
    form = fields.get("feed_forward_proj", "relu")
    if form not in FEED_FORWARD:
        raise UserError(f"config field feed_forward_proj = {form!r} is not supported")
    tied = fields.get("tie_word_embeddings", True)
    scaled = fields.get("scale_decoder_outputs")
    start = fields.get("decoder_start_token_id")
    start = fields.get("pad_token_id") if start is None else start
    return T5Config(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["d_model"],
        intermediate_size=fields["d_ff"],
        num_layers=fields["num_layers"],
        num_decoder_layers=fields.get("num_decoder_layers") or fields["num_layers"],
        num_heads=fields["num_heads"],
        head_dim=fields["d_kv"],
        decoder_start_token=0 if start is None else start,
        gated_gelu=FEED_FORWARD[form],
        tie_embeddings=tied if scaled is None else HEAD not in names,
        scale_outputs=tied if scaled is None else scaled,
        num_buckets=fields.get("relative_attention_num_buckets", 32),
        max_distance=fields.get("relative_attention_max_distance", 128),
        norm_eps=fields.get("layer_norm_epsilon", 1e-6),
        initializer_factor=fields.get("initializer_factor", 1.0),
    )


def write_config(config: T5Config) -> dict[str, Any]:
    """Fields of a config.json that transformers 4 and 5 both read, 4 where tying implies scaling."""
    forms = {gated: form for form, gated in FEED_FORWARD.items()}
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "d_kv": config.head_dim,
        "d_ff": config.intermediate_size,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "decoder_start_token_id": config.decoder_start_token,
        "feed_forward_proj": forms[config.gated_gelu],
        "tie_word_embeddings": config.tie_embeddings or config.scale_outputs,
        "scale_decoder_outputs": config.scale_outputs,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.norm_eps,
        "dropout_rate": 0.1,
        "initializer_factor": config.initializer_factor,
    }


def weights(config: T5Config) -> Mapping[str, str]:
    """Hugging Face name -> path in our parameters. `{}` is the layer."""
    table = {"shared.weight": "embedding", HEAD: "head/kernel"}
    for stack, parts in (("encoder", 2), ("decoder", 3)):
        layers = f"{stack}/layers"
        sublayers = [f"{stack}.block.{{}}.layer.{i}" for i in range(parts)]
        first, last = sublayers[0], sublayers[-1]
        attentions = {"attention": f"{first}.SelfAttention"}
        norms = {"attention": first, "feed_forward": last}
        if stack == "decoder":
            attentions["cross_attention"] = f"{sublayers[1]}.EncDecAttention"
            norms["cross_attention"] = sublayers[1]
        for ours, theirs in attentions.items():
            for name, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
                table[f"{theirs}.{letter}.weight"] = f"{layers}/{ours}/{name}/kernel"
        for ours, theirs in norms.items():
            table[f"{theirs}.layer_norm.weight"] = f"{layers}/{ours}_norm/scale"
        dense = {"wi_0": "gate", "wi_1": "up"} if config.gated_gelu else {"wi": "up"}
        for theirs, ours in {**dense, "wo": "down"}.items():
            table[f"{last}.DenseReluDense.{theirs}.weight"] = f"{layers}/feed_forward/{ours}/kernel"
        relative = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table[relative] = f"{stack}/relative_bias"
        table[f"{stack}.final_layer_norm.weight"] = f"{stack}/norm/scale"
    return table


def is_ignored(name: str, config: T5Config) -> bool:
    """Whether a tensor is nothing to read."""
    return name in IGNORED or (config.tie_embeddings and name == HEAD)
