"""Weights at the gist token alone, beside a small frozen LLaMA, trained without labels.

The base is the quickstart without gist tokens, whose directory is --config.pretrained:

python -m gist_jax.train --config=quickstart --workdir=DIR/base \\
    --config.condition=pos_control --config.num_gist_tokens=0
python -m gist_jax.train --config=quickstart_adapter --workdir=DIR/adapter \\
    --config.pretrained=DIR/base
"""

from ml_collections import ConfigDict

from gist_jax.training.config import default


def get_config() -> ConfigDict:
    config = default()
    config.num_steps = 2500
    config.dtype = "float32"
    config.adapter.update(rank=32, alpha=32.0)
    config.loss.kind = "distill"
    config.data.update(batch_size=22, max_length=96, pack=True)
    config.optimizer.update(learning_rate=3e-3, warmup_steps=100, b2=0.98)
    config.evaluation.update(every=0, num_examples=500, max_new_tokens=16, max_input_length=64)
    config.checkpoint.every = 500
    config.remat = "dots"
    return config
