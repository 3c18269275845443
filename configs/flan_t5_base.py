"""FLAN-T5-Base, 250 million parameters, finetuned on Alpaca+: --config.data.source=DIR."""

from ml_collections import ConfigDict

from gist_jax.training.recipes import flan_t5


def get_config() -> ConfigDict:
    config = flan_t5("google/flan-t5-base")
    config.model.update(hidden_size=768, intermediate_size=2048, num_heads=12)
    config.model.update(num_layers=12, num_decoder_layers=12)
    return config
