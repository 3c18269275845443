"""FLAN-T5-Large, 780 million parameters, finetuned on Alpaca+: --config.data.source=DIR."""

from ml_collections import ConfigDict

from gist_jax.training.recipes import flan_t5


def get_config() -> ConfigDict:
    config = flan_t5("google/flan-t5-large")
    config.model.update(hidden_size=1024, intermediate_size=2816, num_heads=16)
    config.model.update(num_layers=24, num_decoder_layers=24)
    config.remat = "full"
    return config
