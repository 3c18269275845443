"""FLAN-T5-Small, 80 million parameters, finetuned on Alpaca+: --config.data.source=DIR."""

from ml_collections import ConfigDict

from gist_jax.training.recipes import flan_t5


def get_config() -> ConfigDict:
    return flan_t5(
        "google/flan-t5-small",
        hidden_size=512,
        intermediate_size=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
    )
