"""FLAN-T5-XXL, 11 billion parameters, finetuned on Alpaca+ as in the paper.

--config.data.source=DIR, and --config=flan_t5_xxl:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import flan_t5, for_machine


def get_config(machine: str = "") -> ConfigDict:
    config = flan_t5(
        "google/flan-t5-xxl",
        hidden_size=4096,
        intermediate_size=10_240,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=64,
    )
    config.remat = "dots"
    return for_machine(config, machine)
