"""FLAN-T5-XL, 3 billion parameters, finetuned on Alpaca+.

--config.data.source=DIR, and --config=flan_t5_xl:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import flan_t5, for_machine


def get_config(machine: str = "") -> ConfigDict:
    config = flan_t5(
        "google/flan-t5-xl",
        hidden_size=2048,
        intermediate_size=5_120,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=32,
    )
    config.remat = "dots"
    return for_machine(config, machine)
