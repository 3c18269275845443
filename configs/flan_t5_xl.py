"""FLAN-T5-XL, 3 billion parameters, finetuned on Alpaca+: --config.data.source=DIR."""

from ml_collections import ConfigDict

from gist_jax.training.recipes import flan_t5


def get_config() -> ConfigDict:
    config = flan_t5("google/flan-t5-xl")
    config.model.update(hidden_size=2048, intermediate_size=5120, num_heads=32)
    config.model.update(num_layers=24, num_decoder_layers=24)
    config.remat = "full"
    return config
