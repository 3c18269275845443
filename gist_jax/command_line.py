"""What the command-line doors share: a user's mistake ends in one sentence, not in a traceback."""

import argparse
import contextlib
import os
import pathlib
import sys

import jax

from gist_jax.errors import Stopped, UserError

# Libraries that tell a user of these commands about their own insides.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextlib.contextmanager
def one_sentence_errors():
    """Prints a user's mistake on stderr and exits with 1.

    Ctrl-C exits with 130, and a run that SIGTERM stopped with 143, so that whoever sent it can tell a
    run that is to go on from one that is done. Of several processes one that fails ends at once: at an
    ordinary exit jax would wait for the others, and they for this one.
    """
    try:
        yield
    except (UserError, OSError) as error:
        message = "error: " + " ".join(str(error).split())
        if jax.distributed.is_initialized() and jax.process_count() > 1:
            print(message, file=sys.stderr, flush=True)
            os._exit(1)
        sys.exit(message)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        sys.exit(130)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"error: {message} (see --help)\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def parser(description: str) -> argparse.ArgumentParser:
    """The parser of the door that runs; its --help shows the defaults there are."""
    script = pathlib.Path(sys.argv[0])
    if script.name == "__main__.py":  # of a package
        script = script.parent
    package = script.parent.name == "gist_jax"
    prog = f"python -m gist_jax.{script.stem}" if package else f"python {script}"
    return _Parser(prog=prog, description=description, formatter_class=_Help)


def output_file(name: str) -> pathlib.Path:
    """An argument type: a file to write, checked before any work is done."""
    path = pathlib.Path(name)
    if not name or path.is_dir():
        raise argparse.ArgumentTypeError(f"{name!r} is not the name of a file")
    return path


def numbers(text: str) -> list[int]:
    """An argument type: whole numbers above 0 with commas between."""
    found = [int(x) for x in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has a number below 1")
    return found


def add_model(arguments: argparse.ArgumentParser) -> None:
    """--model and --dtype."""
    arguments.add_argument(
        "--model",
        required=True,
        help="training workdir, directory in Hugging Face format, or hub id",
    )
    arguments.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
