"""FLAN-T5-Base, 250 million parameters, finetuned on Alpaca+.

--config.data.source=DIR, and --config=flan_t5_base:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import flan_t5, for_machine


def get_config(machine: str = "") -> ConfigDict:
    config = flan_t5(
        "google/flan-t5-base",
        hidden_size=768,
        intermediate_size=2_048,
        num_layers=12,
        num_decoder_layers=12,
        num_heads=12,
    )
    return for_machine(config, machine)
