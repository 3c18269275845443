"""What the command-line doors share: a user's mistake ends in one sentence, not in a traceback."""

import argparse
import contextlib
import os
import sys

# Libraries that tell a user of these commands about their own insides.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextlib.contextmanager
def one_sentence_errors():
    """Prints a ValueError or OSError on stderr and exits with 1; Ctrl-C exits with 130."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)


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
