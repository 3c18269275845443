"""A small LLaMA on the embedded instruction corpus: 80 seconds on two CPU cores, for each condition."""

from ml_collections import ConfigDict

from gist_jax.training.config import default


def get_config() -> ConfigDict:
    config = default()
    config.num_steps = 1000
    config.dtype = "float32"
    # Prompts have some 25 tokens: a small rope_theta lets so small a model distinguish positions.
    config.model.update(hidden_size=96, intermediate_size=192, num_layers=3, rope_theta=100.0)
    config.model.update(num_heads=3, num_kv_heads=3, head_dim=32, max_positions=512)
    config.model.update(tie_embeddings=True, initializer_range=0.05)
    config.data.update(batch_size=22, max_length=96, pack=True)
    config.optimizer.update(learning_rate=4e-3, warmup_steps=100, b2=0.98)
    config.evaluation.update(every=0, num_examples=500, max_new_tokens=16, max_input_length=64)
    config.checkpoint.every = 500
    config.remat = "dots"  # on a CPU matmuls are what takes time: to keep less is faster
    return config
