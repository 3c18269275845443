"""FLAN-T5-XXL, 11 billion parameters, finetuned on Alpaca+ as in the paper: --config.data.source=DIR."""

from ml_collections import ConfigDict

from gist_jax.training.recipes import flan_t5


def get_config() -> ConfigDict:
    config = flan_t5("google/flan-t5-xxl")
    config.model.update(hidden_size=4096, intermediate_size=10240, num_heads=64)
    config.model.update(num_layers=24, num_decoder_layers=24)
    config.remat = "full"
    return config
