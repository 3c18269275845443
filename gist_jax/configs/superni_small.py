"""A LLaMA of 2.6 million parameters on real instructions: about 20 minutes on two CPU cores.

The data is Super-NaturalInstructions (arXiv 2204.07705), or any other, as JSON records in a directory
with train.json and validation_*.json: --config.data.source=DIR. The tokenizer is trained on its text.
"""

from ml_collections import ConfigDict

from gist_jax.training.config import default


def get_config() -> ConfigDict:
    config = default()
    config.num_steps = 2000
    config.dtype = "float32"
    config.model.update(hidden_size=192, intermediate_size=512, num_layers=4, tie_embeddings=True)
    config.model.update(num_heads=6, num_kv_heads=6, head_dim=32, max_positions=1024)
    config.data.update(source="", tokenizer="bpe:4096", batch_size=8, max_length=256, pack=True)
    config.optimizer.update(learning_rate=1.5e-3, warmup_steps=100, b2=0.98, weight_decay=0.01)
    config.evaluation.update(every=0, num_examples=300, max_new_tokens=32, max_input_length=224)
    config.checkpoint.every = 100
    return config
