"""Llama-3.1-8B finetuned on Alpaca+ with the paper's recipe for LLaMA.

--config.data.source=DIR, and --config=llama_3_1_8b:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import for_machine, llama


def get_config(machine: str = "") -> ConfigDict:
    config = llama(
        "meta-llama/Llama-3.1-8B",
        vocab_size=128_257,
        hidden_size=4096,
        intermediate_size=14_336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_positions=131_072,
        rope_theta=500_000.0,
    )
    return for_machine(config, machine)
