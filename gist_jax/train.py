"""Trains a model: python -m gist_jax.train --config=configs/quickstart.py --workdir=DIR

Any field of the config can be set: --config.optimizer.learning_rate=1e-4. The same command goes on
where a run was stopped.
"""

import pathlib

from absl import app, flags, logging
from ml_collections import config_flags

from gist_jax.command_line import one_sentence_errors
from gist_jax.errors import UserError
from gist_jax.evaluation.scores import evaluator
from gist_jax.training import distributed
from gist_jax.training.loop import train
from gist_jax.training.run import prepare

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with a get_config function.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for checkpoints and figures of the run.")


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; what is wrong with them is a ValueError."""
    flags.mark_flags_as_required(["config", "workdir"])
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # of ml_collections
        raise UserError(f"unknown config field {str(error).strip(chr(39) + chr(34))}") from None
    except Exception as error:  # of absl, or whatever a config file does while it is loaded
        raise UserError(str(error)) from None


def _main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # or Orbax tells of every file it writes
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: settings are written --config.name=value")
    if not _WORKDIR.value:
        raise UserError("--workdir is empty")
    try:
        config = _CONFIG.value
    except Exception as error:  # whatever the file does
        raise UserError(f"cannot load the config: {error}") from None
    distributed.initialize()
    run = prepare(config, pathlib.Path(_WORKDIR.value))
    train(run, evaluator(run))


def main() -> None:
    with one_sentence_errors():
        app.run(_main, flags_parser=_parse)


if __name__ == "__main__":
    main()
