"""Recipes of the paper (arXiv 2304.08467, appendix A), for the configs of several model sizes."""

from ml_collections import ConfigDict

from gist_jax.training.config import default


def flan_t5(checkpoint: str) -> ConfigDict:
    """How the paper trained FLAN-T5-XXL on Alpaca+: `--config.data.source=DIR` with its splits.

    Args:
      checkpoint: hub id of the model to start from.
    """
    config = default("t5")
    config.pretrained = checkpoint
    config.num_steps = 16_000
    config.model.update(head_dim=64, gated_gelu=True, tie_embeddings=False, scale_outputs=False)
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
