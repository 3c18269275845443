"""Trains a model: python -m gist_jax.train --config=configs/quickstart.py --workdir=DIR

Any field of the config can be set: --config.optimizer.learning_rate=1e-4. The same command goes on
where a run was stopped. Of several processes each runs this command: see launch/.
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict

from gist_jax import config_door
from gist_jax.evaluation.scores import evaluator
from gist_jax.training import distributed
from gist_jax.training.loop import train
from gist_jax.training.run import prepare

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for checkpoints and figures of the run, that all its processes see."
)


def _main(config: ConfigDict) -> None:
    distributed.initialize()
    run = prepare(config, pathlib.Path(_WORKDIR.value))
    train(run, evaluator(run))


def main() -> None:
    config_door.run(_main, "workdir")


if __name__ == "__main__":
    main()
