"""The smallest config that does all a run does: --config=tests/helpers/quick.py, or quick.py:t5."""

from ml_collections import ConfigDict

from gist_jax.training.config import default


def get_config(model_family: str = "llama") -> ConfigDict:
    config = default(model_family)
    config.num_steps = 8
    config.dtype = "float32"
    config.model.update(hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, head_dim=8)
    if model_family == "llama":
        config.model.update(num_kv_heads=2, max_positions=96)
    config.data.update(batch_size=8, max_length=48, max_output_length=16)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    config.evaluation.update(every=0, num_examples=4, max_new_tokens=8, max_input_length=48)
    config.evaluation.splits = ConfigDict({"validation_human": {"max_new_tokens": 3}})
    config.checkpoint.every = 2
    config.log.every = 1
    return config
