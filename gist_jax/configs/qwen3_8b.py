"""Qwen3-8B finetuned on Alpaca+ with the paper's recipe for LLaMA.

--config.data.source=DIR, and --config=qwen3_8b:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import for_machine, llama


def get_config(machine: str = "") -> ConfigDict:
    config = llama(
        "Qwen/Qwen3-8B",
        kind="qwen3",
        vocab_size=151_936,
        hidden_size=4096,
        intermediate_size=12_288,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_positions=40_960,
        rope_theta=1_000_000.0,
    )
    return for_machine(config, machine)
