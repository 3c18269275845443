"""The files of a training workdir that say what model it holds.

config.json      the run's configuration
model.json       shape of the model and gist settings
tokenizer/       see gist_jax.data.tokenization
checkpoints/     Orbax, one directory a step
"""

import dataclasses
import pathlib

import jax
from orbax.checkpoint import v1 as ocp

from gist_jax.errors import UserError
from gist_jax.files import read_json, write_json
from gist_jax.models import family
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
MODEL = "model.json"
TOKENIZER = "tokenizer"


def save_model(workdir: pathlib.Path, config: ModelConfig, condition: str, num_gist_tokens: int) -> None:
    """Writes model.json."""
    description = {
        "family": family.name_of(config),
        "config": dataclasses.asdict(config),
        "condition": condition,
        "num_gist_tokens": num_gist_tokens,
    }
    write_json(workdir / MODEL, description)


def load_model(workdir: pathlib.Path) -> tuple[ModelConfig, str, int]:
    """Reads model.json: shape of the model, condition, number of gist tokens.

    Raises:
      ValueError: if there is none or it lacks something.
    """
    path = workdir / MODEL
    try:
        description = read_json(path)
        config = family.FAMILIES[description["family"]](**description["config"])
        return config, description["condition"], description["num_gist_tokens"]
    except (KeyError, TypeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def save_params(workdir: pathlib.Path, params: Params) -> None:
    """Writes a checkpoint of step 0 that holds stacked parameters alone."""
    with ocp.training.Checkpointer((workdir / CHECKPOINTS).resolve()) as checkpoints:
        checkpoints.save_checkpointables(0, {"params": params})


def load_params(workdir: pathlib.Path) -> tuple[Params, int]:
    """Stacked parameters of the best checkpoint (of the last, if none was evaluated), and its step.

    Raises:
      ValueError: if there is no checkpoint yet.
    """
    config, _, _ = load_model(workdir)
    directory = workdir / CHECKPOINTS
    if not directory.is_dir():
        raise UserError(f"{workdir} has no checkpoint yet")
    metric = read_json(workdir / CONFIG).get("checkpoint", {}).get("metric")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(lambda: family.init(config, jax.random.key(0))),
    )
    try:
        with ocp.training.Checkpointer(directory.resolve()) as checkpoints:
            steps = checkpoints.checkpoints
            if not steps:
                raise UserError(f"{workdir} has no checkpoint yet")
            evaluated = [s for s in steps if s.metrics and metric in s.metrics]
            chosen = max(evaluated, key=lambda s: (s.metrics[metric], s.step), default=steps[-1])
            loaded = checkpoints.load_checkpointables(chosen.step, {"params": shapes})
    except UserError:
        raise
    except (KeyError, OSError, ValueError) as error:  # of Orbax, for damaged files
        raise UserError(f"a checkpoint of {workdir} cannot be read: {error}") from None
    return loaded["params"], chosen.step
