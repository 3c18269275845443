"""Compresses instructions into a gist cache file.

python -m gist_jax.compress --model=DIR --instruction="Count the words." --output=x.gist.safetensors
python -m gist_jax.compress --model=DIR --instructions=FILE.jsonl --output=all.gist.safetensors
python -m gist_jax.compress --model=DIR --after=x.gist.safetensors --instruction="Say it." --output=…
"""

import argparse

from gist_jax.cli import (
    K_HELP,
    add_model,
    exit_on_user_error,
    mesh_of,
    output_file,
    parser,
    set_up_libraries,
)
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.instruction_files import compress_file
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.load import load, load_chosen


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    add_model(arguments)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--instruction", action="append", help="may be given several times")
    of_file = "JSON, JSON lines, CSV or parquet with the field instruction; - is standard input"
    what.add_argument("--instructions", help=f"{of_file}. The same command resumes")
    arguments.add_argument(
        "--output", type=output_file, required=True, help="file to write, *.gist.safetensors"
    )
    arguments.add_argument("--num_gist_tokens", type=int, help=K_HELP)
    arguments.add_argument(
        "--after", help="gist cache file of what stands before: the output holds both"
    )
    arguments.add_argument(
        "--fidelity", action="store_true", help="also print what is lost of each instruction"
    )
    arguments.add_argument(
        "--input", action="append", help="of --fidelity: may be given several times; else an empty one"
    )
    arguments.add_argument(
        "--reference", help="of --fidelity: model that reads the whole prompts, see docs/compressing.md"
    )
    options = arguments.parse_args()
    if options.fidelity and options.instructions:
        arguments.error("--fidelity goes with --instruction")
    if options.fidelity and options.after:
        arguments.error("--fidelity compares instructions by themselves: leave --after out")
    if not options.fidelity and (options.input or options.reference):
        arguments.error("--input and --reference go with --fidelity")
    with exit_on_user_error():
        set_up_libraries()
        after = GistCache.load(options.after) if options.after else None
        model = load_chosen(options)
        if options.num_gist_tokens is not None:
            model = model.with_gist_tokens(options.num_gist_tokens)
        if options.instructions is None:
            gists = model.compress(options.instruction, after=after)
            if options.fidelity:
                _show_fidelity(model, options)
            gists.save(options.output)
        else:
            settings = [options.num_gist_tokens, options.dtype, options.after]
            gists = compress_file(model, options.instructions, options.output, after, settings)
        print(f"{options.output}: {len(gists)} instruction(s), {gists.nbytes:,} bytes")


def _show_fidelity(model: LanguageModel, options: argparse.Namespace) -> None:
    reference = None
    if options.reference:
        reference = load(options.reference, dtype=options.dtype, mesh=mesh_of(options))
    inputs = options.input or [""]
    pairs = [(text, given) for text in options.instruction for given in inputs]
    for found in model.fidelity(*map(list, zip(*pairs, strict=True)), reference=reference):
        print(found)


if __name__ == "__main__":
    main()
