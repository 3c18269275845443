"""LLaMA-7B finetuned on Alpaca+ as in the paper.

--config.data.source=DIR, and --config=llama_7b:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import for_machine, llama


def get_config(machine: str = "") -> ConfigDict:
    config = llama(
        "huggyllama/llama-7b",
        vocab_size=32_001,
        hidden_size=4096,
        intermediate_size=11_008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
    )
    return for_machine(config, machine)
