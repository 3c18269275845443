"""Trains a model, and resumes a run that was stopped.

python -m gist_jax.train --config=quickstart --workdir=DIR

--config.name=value sets any field of the config, as in --config.optimizer.learning_rate=1e-4. The same
command resumes where a run was stopped. Of several processes each runs this command: see launch/.
"""

from gist_jax import cli
from gist_jax.evaluation.predict import evaluator
from gist_jax.training import distributed
from gist_jax.training.loop import train
from gist_jax.training.run import prepare


def main() -> None:
    """Runs the command."""
    arguments = cli.parser(__doc__)
    cli.add_config(arguments, required=True)
    meaning = "directory for what the run leaves, that all its processes see, or gs://BUCKET/FOLDER"
    arguments.add_argument("--workdir", required=True, type=cli.nonempty, help=meaning)
    options, settings = cli.parse_with_config(arguments)
    with cli.exit_on_user_error():
        cli.set_up_libraries()
        config = cli.load_config(options.config, settings)
        distributed.initialize()
        run = prepare(config, options.workdir)
        train(run, evaluator(run))


if __name__ == "__main__":
    main()
