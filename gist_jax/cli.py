"""What the commands share: arguments, config files with flags for their fields, and errors.

A command is a module that is run as `python -m gist_jax.NAME`. It makes a `parser`, adds its arguments,
and does its work inside `exit_on_user_error`. One that takes a config calls `add_config`; any field of
the config can then be set by `--config.name=value`.
"""

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from gist_jax.compilation_cache import use_compilation_cache
from gist_jax.errors import Stopped, UserError, shortened

CONFIGS = pathlib.Path(__file__).with_name("configs")
DTYPES = ("float32", "bfloat16")  # in which a model can compute
OUTPUT_HELP = "directory to write, which must not exist yet"
K_HELP = "one of the numbers that the model was trained with; by default the largest"
MODEL_HELP = "training workdir (also gs://BUCKET/FOLDER), directory in Hugging Face format, or hub id"


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Prints a user's mistake on stderr and exits with 1.

    Ctrl-C exits with 130, and a run that SIGTERM stopped with 143, so that whoever sent it can tell a
    run that is to be resumed from one that is done. Of several processes one that fails ends at once: at
    an ordinary exit jax would wait for the others, and they for this one.
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
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults there are, and descriptions as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def parser(description: str) -> argparse.ArgumentParser:
    """The parser of the command that runs; its --help shows the defaults there are."""
    script = pathlib.Path(sys.argv[0])
    if script.name == "__main__.py":  # of a package
        script = script.parent
    folders = script.parent.parts
    prog = f"python {script}"
    if "gist_jax" in folders and script.parent.joinpath("__init__.py").exists():
        last = len(folders) - 1 - folders[::-1].index("gist_jax")
        prog = f"python -m {'.'.join([*folders[last:], script.stem])}"
    return _Parser(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)


def add_subcommand(
    subcommands: Any, name: str, run: Callable[[argparse.Namespace], None], meaning: str
) -> argparse.ArgumentParser:
    """Adds a subcommand, which `options.run(options)` runs, and gives its parser.

    Args:
      subcommands: of `parser(…).add_subparsers`.
    """
    subcommand: argparse.ArgumentParser = subcommands.add_parser(name, help=meaning)
    subcommand.set_defaults(run=run)
    return subcommand


def output_file(name: str) -> pathlib.Path:
    """An argument type: a file of this machine to write, checked before any work is done."""
    path = pathlib.Path(name)
    if not name or "://" in name or path.is_dir():
        raise argparse.ArgumentTypeError(f"{name!r} is not the name of a file")
    return path


def output_directory(name: str) -> pathlib.Path:
    """An argument type: a directory of this machine to write."""
    if "://" in name:
        raise argparse.ArgumentTypeError(f"{name!r} is not the name of a directory")
    return pathlib.Path(name)


def nonempty(text: str) -> str:
    """An argument type: any text but the empty one."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def positive_ints(text: str) -> list[int]:
    """An argument type: whole numbers above 0 with commas between."""
    try:
        found = [int(x) for x in text.split(",")]
    except ValueError:
        sentence = f"{text!r} is not whole numbers with commas between"
        raise argparse.ArgumentTypeError(sentence) from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has a number below 1")
    return found


def add_model(arguments: argparse.ArgumentParser) -> None:
    """Adds --model, --dtype, and what `add_adapter` and `add_mesh` add."""
    arguments.add_argument("--model", required=True, help=MODEL_HELP)
    arguments.add_argument("--dtype", default="float32", choices=DTYPES)
    add_adapter(arguments)
    add_mesh(arguments)


def add_mesh(arguments: argparse.ArgumentParser) -> None:
    """Adds --mesh.tensor and --mesh.data, which `mesh_of` reads."""
    split = "devices over which heads, feed-forward network and vocabulary are split"
    arguments.add_argument("--mesh.tensor", type=int, metavar="N", help=split)
    rows = "groups of such devices over which rows are split"
    arguments.add_argument("--mesh.data", type=int, metavar="N", help=rows)


def mesh_of(options: argparse.Namespace) -> dict[str, int] | None:
    """Sizes of the mesh that is asked for, by axis; None: one device."""
    sizes = {axis: getattr(options, f"mesh.{axis}") for axis in ("data", "tensor")}
    return {axis: size for axis, size in sizes.items() if size is not None} or None


def add_adapter(arguments: argparse.ArgumentParser) -> None:
    """Adds --adapter and --base, see `gist_jax.inference.load.load`."""
    arguments.add_argument("--adapter", help="adapter to use with --model, which is its base")
    arguments.add_argument("--base", help="of an adapter given as --model, if it moved")


def add_config(arguments: argparse._ActionsContainer, **options: Any) -> None:
    """Adds --config, to be parsed by `parse_with_config`.

    Args:
      options: of `add_argument`; `help` says what the config is of.
    """
    meaning = options.pop("help", "config") + (
        f": {', '.join(config_names())}, or a Python file of your own; it is run, so load only one that "
        "you trust; --config.name=value sets any field"
    )
    arguments.add_argument("--config", metavar="NAME", help=meaning, **options)


def parse_with_config(arguments: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line, and gives the arguments that set fields of the config besides."""
    options, rest = arguments.parse_known_args(_joined(sys.argv[1:]))
    rest = [argument for argument in rest if argument != "--"]
    for argument in rest:
        if not argument.startswith("--config."):
            arguments.error(f"unrecognized argument {argument}: fields are set by --config.name=value")
    return options, rest


def _joined(argv: Sequence[str]) -> list[str]:
    """Writes `--config.name value` as `--config.name=value`."""
    joined: list[str] = []
    for argument in argv:
        last = joined[-1] if joined else ""
        if last.startswith("--config.") and "=" not in last and not argument.startswith("--"):
            joined[-1] = f"{last}={argument}"
        else:
            joined.append(argument)
    return joined


def load_config(file: str, settings: Sequence[str] = ()) -> ConfigDict:
    """Loads a config: "llama_7b", "llama_7b:v5e-64" with what its function takes, or "my/own.py".

    The file is Python and is run: only one that is trusted may be loaded.

    Args:
      file: a file that is there; otherwise the name of a config of the package, for which
        "configs/NAME.py" stands too.
      settings: values for its fields, written `--config.name=value`.

    Raises:
      UserError: if there is no such file, it fails, or a value does not suit its field.
    """
    if not file:
        raise UserError("--config is empty")
    known, argv = flags.FlagValues(), ["", f"--config={_config_file(file)}", *settings]
    config_flags.DEFINE_config_file("config", flag_values=known, sys_argv=argv)
    try:
        known(argv)
    except (AttributeError, KeyError) as error:  # of ml_collections, while it parses
        name = str(error).strip("'\"")
        raise UserError(f"unknown config field {shortened(name)}") from None
    except Exception as error:
        raise UserError(shortened(error)) from None
    try:
        return known.config
    except Exception as error:  # whatever a config file does while it is loaded
        raise UserError(f"cannot load the config: {shortened(error)}") from None


def _config_file(given: str) -> str:
    """The file that stands behind --config, with what follows its colon."""
    name, *machine = given.split(":", 1)
    if os.path.isfile(name):
        return given
    stem = pathlib.PurePath(name).stem
    if stem not in config_names() or name not in (stem, f"configs/{stem}.py"):
        raise UserError(
            f"there is no config file {name}, nor a config of that name in the package: it has "
            + ", ".join(config_names())
        )
    return ":".join([str(CONFIGS / f"{stem}.py"), *machine])


def config_names() -> list[str]:
    """The names of the configs that are part of the package."""
    return sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))


def set_up_libraries() -> None:
    """Keeps compiled programs on disk, and leaves only warnings of what libraries log."""
    use_compilation_cache()
    logging.set_verbosity(logging.WARNING)  # or Orbax tells of every file it writes
