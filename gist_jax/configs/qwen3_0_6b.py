"""Qwen3-0.6B finetuned on Alpaca+ with the paper's recipe for LLaMA.

--config.data.source=DIR, and --config=qwen3_0_6b:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import for_machine, llama


def get_config(machine: str = "") -> ConfigDict:
    config = llama(
        "Qwen/Qwen3-0.6B",
        kind="qwen3",
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        max_positions=40_960,
        rope_theta=1_000_000.0,
        tie_embeddings=True,
    )
    return for_machine(config, machine)
