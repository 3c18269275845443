"""A LLaMA of 3.4 million parameters, pretrained on documents and instructions on two CPU cores.

launch/miniature.py gives it its data, such as --config.data.source='1*json:BOOKS + 1*json:INSTRUCTIONS'.
"""

from ml_collections import ConfigDict

from gist_jax.training.config import default


def get_config() -> ConfigDict:
    config = default()
    config.condition, config.num_gist_tokens = "pos_control", 0  # plain language modelling
    config.loss.tokens = "all"
    config.num_steps = 5000
    config.dtype = "float32"
    config.model.update(hidden_size=192, intermediate_size=512, num_layers=6, tie_embeddings=True)
    config.model.update(num_heads=6, num_kv_heads=6, head_dim=32, max_positions=1024)
    config.data.update(source="", tokenizer="bpe:4096", batch_size=16, max_length=256, pack=True)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=200, b2=0.98, weight_decay=0.05)
    config.evaluation.update(kind="loss", every=1000, num_examples=400)
    config.checkpoint.update(every=500, metric="validation_books/nats_per_byte")
    config.remat = "dots"
    return config
