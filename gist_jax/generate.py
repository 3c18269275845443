"""Generates outputs from gist caches, or from whole instructions.

python -m gist_jax.generate --model=DIR --gist=x.gist.safetensors --input="tea cup lamp"
python -m gist_jax.generate --model=DIR --library=DIR --gist=count --input="tea cup lamp"
python -m gist_jax.generate --model=DIR --library=DIR --inputs=FILE.jsonl --output=OUT.jsonl

Prints an output for every --input, a line each; line breaks in it are written \\n. The records of
--inputs are requests: fields are input, gist (a name in the library) or instruction, and any option. The
same command resumes where it was stopped. With --inputs=- they are read from standard input, one a line,
and answered as they come.
"""

import argparse
import contextlib
import sys
from collections.abc import Mapping

from gist_jax.cli import add_model, exit_on_user_error, output_file, parser, set_up_libraries
from gist_jax.errors import UserError
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.library import GistLibrary
from gist_jax.inference.load import load_chosen
from gist_jax.inference.request_files import STANDARD, answer_file, answer_stream
from gist_jax.inference.requests import Request
from gist_jax.io import atomic_write

_OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    add_model(arguments)
    prompt = arguments.add_mutually_exclusive_group()
    of_gist = "file of gist_jax.compress: one instruction, or one an input; with --library a name in it"
    prompt.add_argument("--gist", help=of_gist)
    prompt.add_argument("--instruction", action="append", help="without a cache: the whole prompt")
    arguments.add_argument("--library", help="folder of gists by name, see gist_jax.library")
    inputs = arguments.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--input", action="append", help="may be empty, and given several times")
    inputs.add_argument("--inputs", help="JSON, JSON lines, CSV or parquet; - is standard input")
    of_output = "file for the outputs of --inputs, *.jsonl, *.json, *.csv or *.parquet"
    arguments.add_argument("--output", type=output_file, help=f"{of_output}; - is standard output")
    arguments.add_argument("--max_new_tokens", type=int, default=64)
    arguments.add_argument("--stop", action="append", default=[], help="text at which an output ends")
    arguments.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    arguments.add_argument("--top_k", type=int, default=0, help="0: all tokens")
    arguments.add_argument("--top_p", type=float, default=1.0)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--slots", type=int, default=16, help="of --inputs, so many at a time")
    options = arguments.parse_args()
    if (options.inputs is None) != (options.output is None):
        arguments.error("--inputs and --output go together")
    if options.slots < 1:
        arguments.error(f"--slots must be at least 1, but is {options.slots}")
    if options.input is not None and not (options.gist or options.instruction):
        arguments.error("one of the arguments --gist --instruction is required")
    with exit_on_user_error():
        set_up_libraries()
        library = GistLibrary(options.library) if options.library else {}
        lm = load_chosen(options)
        if options.input is not None:
            _generate(options, lm, library)
        else:
            _answer(options, lm, library)


def _generate(options: argparse.Namespace, lm: LanguageModel, library: Mapping[str, GistCache]) -> None:
    outputs = lm.generate(
        _gists(options, library),
        inputs=options.input,
        instructions=options.instruction,
        stop=options.stop,
        **{name: getattr(options, name) for name in _OPTIONS},
    )
    print("\n".join(text.replace("\n", "\\n") for text in outputs))


def _gists(options: argparse.Namespace, library: Mapping[str, GistCache]) -> GistCache | None:
    if not options.gist:
        return None
    return library[options.gist] if options.library else GistCache.load(options.gist)


def _answer(options: argparse.Namespace, lm: LanguageModel, library: Mapping[str, GistCache]) -> None:
    gists, instructions = _gists(options, library), options.instruction or [None]
    if len(instructions) > 1 or (gists is not None and len(gists) > 1):
        raise UserError("with --inputs give one instruction, or none: that of a record comes first")
    given = {name: getattr(options, name) for name in (*_OPTIONS, "stop")}
    default = Request("", gists, instructions[0], **given)
    settings = dict(slots=options.slots, library=library)
    names = ("library", "gist", "instruction", "dtype", "slots")
    made_of = {**given, **{name: getattr(options, name) for name in names}}
    if options.inputs != STANDARD and str(options.output) != STANDARD:
        print(answer_file(lm, options.inputs, options.output, default, **settings, made_of=made_of))
        return
    if options.inputs != STANDARD:
        raise UserError("--output=- goes with --inputs=-")
    with contextlib.ExitStack() as stack:
        output = sys.stdout
        if str(options.output) != STANDARD:
            output = stack.enter_context(
                stack.enter_context(atomic_write(options.output)).open("w", encoding="utf-8")
            )
        answer_stream(lm, default, **settings, output=output)


if __name__ == "__main__":
    main()
