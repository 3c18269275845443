"""What the doors share that take a config: --config=FILE, with --config.name=value for any field."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from gist_jax.command_line import one_sentence_errors
from gist_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with a get_config function.")


def load(arguments: Sequence[str]) -> ConfigDict:
    """The config that arguments such as --config=FILE and --config.num_steps=8 describe.

    Raises:
      UserError: if there is none.
    """
    known, argv = flags.FlagValues(), ["", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=known, sys_argv=argv)
    with _mistakes():
        known(argv)
    with _mistakes("cannot load the config: "):
        return known.config


def run(main: Callable[[ConfigDict], None], *required: str) -> None:
    """Parses flags and calls `main` with the config; a mistake ends in one sentence.

    Args:
      required: flags that must be given besides the config, and not be empty.
    """

    def parse(argv: list[str]) -> list[str]:
        flags.mark_flags_as_required(["config", *required])
        with _mistakes():
            return flags.FLAGS(argv)

    def start(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # or Orbax tells of every file it writes
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}: settings are written --config.name=value")
        for name in required:
            if not flags.FLAGS[name].value:
                raise UserError(f"--{name} is empty")
        with _mistakes("cannot load the config: "):
            config = _CONFIG.value
        main(config)

    with one_sentence_errors():
        app.run(start, flags_parser=parse)


@contextlib.contextmanager
def _mistakes(before: str = "") -> Iterator[None]:
    """Whatever a config file does while it is loaded, and what absl and ml_collections refuse."""
    try:
        yield
    except (AttributeError, KeyError) as error:  # of ml_collections, while it parses
        problem = f"unknown config field {str(error).strip(chr(39) + chr(34))}"
        raise UserError(f"{before}{error}" if before else problem) from None
    except Exception as error:
        raise UserError(f"{before}{error}") from None
