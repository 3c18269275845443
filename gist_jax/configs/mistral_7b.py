"""Mistral-7B finetuned on Alpaca+ with the paper's recipe for LLaMA.

--config.data.source=DIR, and --config=mistral_7b:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import for_machine, llama


def get_config(machine: str = "") -> ConfigDict:
    config = llama(
        "mistralai/Mistral-7B-v0.3",
        kind="mistral",
        vocab_size=32_769,
        hidden_size=4096,
        intermediate_size=14_336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_positions=32_768,
        rope_theta=1_000_000.0,
    )
    return for_machine(config, machine)
