"""Compresses instructions into a gist cache file.

python -m gist_jax.compress --model=DIR --instruction="Count the words." --output=x.gist.safetensors
python -m gist_jax.compress --model=DIR --instructions=FILE.jsonl --output=all.gist.safetensors
python -m gist_jax.compress --model=DIR --after=x.gist.safetensors --instruction="Say it." --output=…
"""

from gist_jax.cli import K_HELP, add_model, exit_on_user_error, output_file, parser, set_up_libraries
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.instruction_files import compress_file
from gist_jax.inference.load import load


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
    options = arguments.parse_args()
    with exit_on_user_error():
        set_up_libraries()
        after = GistCache.load(options.after) if options.after else None
        model = load(options.model, dtype=options.dtype, adapter=options.adapter, base=options.base)
        if options.num_gist_tokens is not None:
            model = model.with_gist_tokens(options.num_gist_tokens)
        if options.instructions is None:
            gists = model.compress(options.instruction, after=after)
            gists.save(options.output)
        else:
            settings = [options.num_gist_tokens, options.dtype, options.after]
            gists = compress_file(model, options.instructions, options.output, after, settings)
        print(f"{options.output}: {len(gists)} instruction(s), {gists.nbytes:,} bytes")


if __name__ == "__main__":
    main()
