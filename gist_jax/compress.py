"""Compresses instructions into a gist cache file.

python -m gist_jax.compress --model=DIR --instruction="Count the words." --output=x.gist.safetensors
python -m gist_jax.compress --model=DIR --after=x.gist.safetensors --instruction="Say it." --output=…
"""

from gist_jax.cli import K_HELP, add_model, exit_on_user_error, output_file, parser, set_up_libraries
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.load import load


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    add_model(arguments)
    arguments.add_argument(
        "--instruction", action="append", required=True, help="may be given several times"
    )
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
        gists = model.compress(options.instruction, num_gist_tokens=options.num_gist_tokens, after=after)
        gists.save(options.output)
        print(f"{options.output}: {len(gists)} instruction(s), {gists.nbytes:,} bytes")


if __name__ == "__main__":
    main()
