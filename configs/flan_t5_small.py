"""FLAN-T5-Small, 80 million parameters, finetuned on Alpaca+.

--config.data.source=DIR, and --config=configs/flan_t5_small.py:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import flan_t5, on


def get_config(machine: str = "") -> ConfigDict:
    config = flan_t5(
        "google/flan-t5-small",
        hidden_size=512,
        intermediate_size=1_024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
    )
    return on(config, machine)
