"""What the command-line doors share: a user's mistake ends in one sentence, not in a traceback."""

import argparse
import contextlib
import os
import sys

# Libraries that tell a user of these commands about their own insides.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextlib.contextmanager
def one_sentence_errors():
    """Prints a user's mistake on stderr and exits with 1; Ctrl-C exits with 130.

    A ValueError raised by this package is a user's mistake, and so is a file that cannot be used. Any
    other ValueError is a fault of ours and keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not _raised_here(error):
            raise
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)


def _raised_here(error: ValueError) -> bool:
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    module = last.tb_frame.f_globals.get("__name__", "")
    return module == "__main__" or module.startswith("gist_jax.")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser whose --help shows the defaults."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def add_model(arguments: argparse.ArgumentParser, required: bool = True) -> None:
    """--model and --dtype."""
    arguments.add_argument(
        "--model",
        required=required,
        help="training workdir, directory in Hugging Face format, or hub id",
    )
    arguments.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
