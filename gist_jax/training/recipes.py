"""What the configs of larger models share: recipes of the paper, and settings for some machines."""

from typing import Any

from ml_collections import ConfigDict

from gist_jax.errors import UserError
from gist_jax.training.config import default

# Machines that a config can be made for, as in --config=configs/llama_7b.py:v5e-64: the number of chips,
# over how many of them heads and the feed-forward dimension are split, and how many tokens a chip takes
# at a time. docs/scaling.md has the numbers behind them.
MACHINES = {
    "4xA100-80GB": (4, 1, 8192),
    "8xH100": (8, 1, 8192),
    "v5e-64": (64, 4, 4096),
    "v4-32": (16, 1, 4096),  # of v4 the name has the cores, two a chip
}


def llama(checkpoint: str, **shape: Any) -> ConfigDict:
    """How the paper (arXiv 2304.08467, appendix A) trained LLaMA-7B on Alpaca+, which the defaults are:
    `--config.data.source=DIR` with its splits.

    Args:
      checkpoint: hub id of the model to start from.
      shape: of `config.model`.
    """
    config = default()
    config.pretrained = checkpoint
    config.model.update(shape)
    config.data.source = ""
    config.mesh.update(data=1, fsdp=-1)
    config.remat = "dots"
    config.evaluation.update(max_input_length=256, max_new_tokens=256)
    config.evaluation.splits = ConfigDict(
        {"validation_human": {"max_input_length": 384, "max_new_tokens": 384}}
    )
    return config


def flan_t5(checkpoint: str, **shape: Any) -> ConfigDict:
    """How the paper trained FLAN-T5-XXL on Alpaca+; arguments as of `llama`."""
    config = default("t5")
    config.pretrained = checkpoint
    config.num_steps = 16_000
    config.model.update(vocab_size=32_128, head_dim=64, **shape)
    config.data.update(source="", batch_size=16, max_length=128, max_output_length=256)
    config.optimizer.update(learning_rate=5e-5, schedule="constant", warmup_steps=0)
    config.dropout = 0.1
    config.mesh.update(data=1, fsdp=-1)
    config.evaluation.update(max_input_length=128, max_new_tokens=256)
    config.evaluation.splits = ConfigDict(
        {"validation_human": {"max_input_length": 384, "max_new_tokens": 384}}
    )
    config.checkpoint.every = 1000
    return config


def for_machine(config: ConfigDict, machine: str) -> ConfigDict:
    """The config with a mesh and microbatches that suit one of MACHINES; unchanged for "".

    Raises:
      UserError: for an unknown machine.
    """
    if not machine:
        return config
    if machine not in MACHINES:
        raise UserError(f"{machine!r} is not one of the machines {', '.join(MACHINES)}")
    chips, tensor, tokens = MACHINES[machine]
    batch, length = config.data.batch_size, config.data.max_length
    if config.model.family == "t5":
        length += config.data.max_output_length
    fsdp = chips // tensor
    config.mesh.update(data=1, fsdp=fsdp, tensor=tensor)
    while batch // fsdp // config.optimizer.accumulate * length > tokens:
        config.optimizer.accumulate *= 2
    return config
