"""A small T5 on the embedded instruction corpus: three minutes on two CPU cores, for each condition."""

from ml_collections import ConfigDict

from gist_jax.training.config import default


def get_config() -> ConfigDict:
    config = default("t5")
    config.num_steps = 2000
    config.dtype = "float32"
    config.dropout = 0.0
    config.model.update(hidden_size=96, intermediate_size=192, num_layers=2, num_decoder_layers=2)
    # Copying words takes heads more than it takes width.
    config.model.update(num_heads=12, head_dim=8)
    config.model.update(tie_embeddings=True, scale_outputs=True, initializer_factor=0.3)
    config.data.update(batch_size=22, max_length=96, max_output_length=24, pack=True)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=100, b2=0.98)
    config.evaluation.update(every=0, num_examples=500, max_new_tokens=16, max_input_length=64)
    config.checkpoint.every = 500
    return config
