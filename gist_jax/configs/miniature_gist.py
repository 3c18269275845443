"""Finetunes the base of `miniature_base` on tasks with short outputs, with gist tokens or as a control.

launch/miniature.py gives it --config.pretrained and --config.data.source.
"""

from ml_collections import ConfigDict

from gist_jax.training.config import default


def get_config() -> ConfigDict:
    config = default()
    config.num_steps = 600
    config.dtype = "float32"
    config.data.update(source="", batch_size=16, max_length=256, pack=True)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=50, b2=0.98, weight_decay=0.05)
    config.evaluation.update(every=200, num_examples=600, max_new_tokens=32, max_input_length=240)
    config.checkpoint.every = 200
    config.remat = "dots"
    return config
