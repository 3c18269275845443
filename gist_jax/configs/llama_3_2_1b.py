"""Llama-3.2-1B finetuned on Alpaca+ with the paper's recipe for LLaMA.

--config.data.source=DIR, and --config=llama_3_2_1b:v5e-64 for one of `recipes.MACHINES`.
"""

from ml_collections import ConfigDict

from gist_jax.training.recipes import for_machine, llama


def get_config(machine: str = "") -> ConfigDict:
    config = llama(
        "meta-llama/Llama-3.2-1B",
        vocab_size=128_257,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        max_positions=131_072,
        rope_theta=500_000.0,
        tie_embeddings=True,
    )
    return for_machine(config, machine)
