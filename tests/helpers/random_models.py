"""Small random models of transformers: without PyTorch, what imports this is skipped."""

import pytest
import transformers

torch = pytest.importorskip("torch", reason="PyTorch is optional: pip install 'gist_jax[torch]'")

VOCAB, GIST = 61, 60
SHAPES = {
    "v1.0": dict(feed_forward_proj="relu", tie_word_embeddings=True),
    "v1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def random_t5(
    version: str, untied: bool, vocab_size: int = VOCAB
) -> "transformers.T5ForConditionalGeneration":
    torch.manual_seed(0)
    shape = dict(vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=48, num_heads=4)
    layers = dict(num_layers=3, num_decoder_layers=2, decoder_start_token_id=0, dropout_rate=0.1)
    config = transformers.T5Config(**shape, **layers, **SHAPES[version])
    model = transformers.T5ForConditionalGeneration(config).eval()
    if untied:  # transformers 5 ties a new model's head, and unties one that a checkpoint holds
        model.lm_head.weight = torch.nn.Parameter(torch.randn(vocab_size, 32))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # all ones in a new model
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
    return model


SMALL = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
SMALL |= dict(num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 100.0}
DECODERS = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "mistral": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {"head_dim": 8}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}


def random_decoder(name: str, vocab_size: int = VOCAB):
    torch.manual_seed(1)
    kind, fields = DECODERS[name]
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, "vocab_size": vocab_size}, **fields)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name_, weight in model.named_parameters():
            if "norm" in name_ or "bias" in name_:  # all ones, or all zeros, in a new model
                weight.copy_(weight + 0.2 * torch.randn_like(weight))
    return model
