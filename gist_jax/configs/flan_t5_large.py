"""FLAN-T5-Large, 780 million parameters, finetuned on Alpaca+.

--config.data.source=DIR, and --config=flan_t5_large:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import flan_t5, for_machine


def get_config(machine: str = "") -> ConfigDict:
    config = flan_t5(
        "google/flan-t5-large",
        hidden_size=1024,
        intermediate_size=2_816,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=16,
    )
    config.remat = "dots"
    return for_machine(config, machine)
