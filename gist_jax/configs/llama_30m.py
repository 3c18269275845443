"""A LLaMA of 31 million parameters on the embedded corpus, to measure with on a CPU.

It is as deep and as wide as it must be for its weights not to fit into the CPU's caches.
"""

from ml_collections import ConfigDict

from gist_jax.training.config import default


def get_config() -> ConfigDict:
    config = default()
    config.dtype = "float32"
    config.remat = "dots"  # on a CPU it takes less time to compute anew what is not a matmul
    config.model.update(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1152,
        num_layers=8,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
    )
    config.data.update(batch_size=16, pack=True)
    return config
