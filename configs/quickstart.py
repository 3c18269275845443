"""A small LLaMA on the embedded instruction corpus: minutes on two CPU cores."""

from ml_collections import ConfigDict

from gist_jax.training.config import default


def get_config() -> ConfigDict:
    config = default()
    config.num_steps = 1000
    config.dtype = "float32"
    config.model.update(
        hidden_size=64, intermediate_size=192, num_layers=3, num_heads=4, num_kv_heads=4, head_dim=16
    )
    config.model.update(max_positions=512, initializer_range=0.05)
    config.data.update(batch_size=32, max_length=64, pack=True)
    config.optimizer.update(learning_rate=3e-3, warmup_steps=100, b2=0.98)
    config.evaluation.update(every=0, num_examples=500, max_new_tokens=16, max_input_length=64)
    config.checkpoint.every = 250
    return config
