"""Makes tests/golden/families: random small models of transformers and their logits in PyTorch.

python tests/golden/make_families.py      (needs PyTorch; written with transformers 5.23, PyTorch 2.13)
"""

import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent / "families"
VOCAB = 40
DECODER = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
DECODER |= dict(num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
T5 = dict(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_heads=4, num_layers=2)
T5 |= dict(num_decoder_layers=2, decoder_start_token_id=0)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 100.0}
MODELS = {
    "llama3": ("LlamaConfig", {**DECODER, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {**DECODER, "sliding_window": 64}),
    "qwen2": ("Qwen2Config", DECODER),
    "qwen3": ("Qwen3Config", {**DECODER, "head_dim": 8}),
    "t5_v1_0": ("T5Config", {**T5, "feed_forward_proj": "relu"}),
    "t5_v1_1": (
        "T5Config",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}


def main() -> None:
    for seed, (name, (kind, fields)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        config = getattr(transformers, kind)(**fields)
        seq2seq = config.is_encoder_decoder
        auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
        model = auto.from_config(config).eval()
        if name == "t5_v1_1":
            model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB, 16))
        with torch.no_grad():
            for parameter, weight in model.named_parameters():
                if "norm" in parameter or "bias" in parameter:
                    weight.add_(0.2 * torch.randn_like(weight))
        model.save_pretrained(HERE / name)
        (HERE / name / "generation_config.json").unlink(missing_ok=True)
        tokens = torch.randint(3, VOCAB, (2, 40))
        inputs = {"input_ids": tokens}
        if seq2seq:
            inputs["decoder_input_ids"] = torch.randint(3, VOCAB, (2, 12))
        with torch.no_grad():
            logits = model(**inputs).logits
        arrays = {key: value.numpy().astype(np.int32) for key, value in inputs.items()}
        np.savez_compressed(HERE / name / "logits.npz", logits=logits.numpy(), **arrays)


if __name__ == "__main__":
    main()
