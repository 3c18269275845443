"""Keeps many gist caches in one folder, by name.

python -m gist_jax.library add    --library=DIR --model=DIR --name=count --instruction="Count the words."
python -m gist_jax.library add    --library=DIR --model=DIR --instructions=FILE.jsonl
python -m gist_jax.library list   --library=DIR
python -m gist_jax.library remove --library=DIR --name=count
python -m gist_jax.library verify --library=DIR
"""

import argparse
from collections.abc import Callable

from gist_jax.cli import (
    add_model,
    add_subcommand,
    exit_on_user_error,
    nonempty,
    parser,
    set_up_libraries,
)
from gist_jax.data.files import read_records
from gist_jax.errors import UserError
from gist_jax.inference.library import GistLibrary
from gist_jax.inference.load import load_chosen
from gist_jax.io import format_table


def _list(options: argparse.Namespace) -> None:
    library = GistLibrary(options.library)
    lines = [["name", "date", "instruction"]]
    for name in library:
        entry = library.entry(name)
        lines.append([name, entry.date, entry.instruction.replace("\n", "\\n")])
    print(format_table(lines, left=3))


def _add(options: argparse.Namespace) -> None:
    if options.instructions:
        texts = _read(options.instructions)
    elif options.name and options.instruction:
        texts = {options.name[0]: options.instruction}
    else:
        raise UserError("give --name and --instruction, or a file of --instructions")
    library = GistLibrary(options.library)
    model = load_chosen(options)
    library.add(texts, model)
    print(f"{options.library}: {len(texts)} added, {len(library)} in all")


def _read(file: str) -> dict[str, str]:
    """Instructions by name, of records with the fields name and instruction."""
    texts: dict[str, str] = {}
    for i, record in enumerate(read_records(file)):
        name, instruction = record.get("name"), record.get("instruction")
        if not (isinstance(name, str) and name and isinstance(instruction, str)):
            raise UserError(f"record {i} of {file} must have a name and an instruction, both texts")
        if name in texts:
            raise UserError(f"record {i} of {file} has the name {name!r} once more")
        texts[name] = instruction
    return texts


def _remove(options: argparse.Namespace) -> None:
    library = GistLibrary(options.library)
    library.remove(*options.name)
    print(f"{options.library}: {len(options.name)} removed, {len(library)} left")


def _verify(options: argparse.Namespace) -> None:
    library = GistLibrary(options.library)
    problems = library.verify()
    for name, problem in problems.items():
        print(f"{name}: {problem}")
    if problems:
        raise UserError(f"{len(problems)} of {len(library)} gists cannot be used")
    print(f"{options.library}: {len(library)} gists, all sound")


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    subcommands = arguments.add_subparsers(required=True, metavar="list|add|remove|verify")

    def add(
        name: str, run: Callable[[argparse.Namespace], None], meaning: str
    ) -> argparse.ArgumentParser:
        subcommand = add_subcommand(subcommands, name, run, meaning)
        subcommand.add_argument("--library", required=True, type=nonempty, help="folder of the gists")
        return subcommand

    add("list", _list, "print names, dates and instructions")
    subcommand = add("add", _add, "compress instructions")
    add_model(subcommand)
    subcommand.add_argument("--name", action="append")
    subcommand.add_argument("--instruction")
    subcommand.add_argument("--instructions", help="JSON, JSON lines, CSV or parquet: name, instruction")
    subcommand = add("remove", _remove, "remove gists")
    subcommand.add_argument("--name", action="append", required=True, help="may be given several times")
    add("verify", _verify, "read every file, and remove those that belong to nothing")
    options = arguments.parse_args()
    with exit_on_user_error():
        set_up_libraries()
        options.run(options)


if __name__ == "__main__":
    main()
