"""Generates outputs from a gist cache file, or from whole instructions.

python -m gist_jax.generate --model=DIR --gist=x.gist.safetensors --input="tea cup lamp"

Prints an output for every input, one a line; line breaks in it are written \\n.
"""

from gist_jax.cli import add_model, exit_on_user_error, parser, set_up_libraries
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.load import load


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    add_model(arguments)
    prompt = arguments.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--gist", help="file of gist_jax.compress: one instruction, or one an input")
    prompt.add_argument("--instruction", action="append", help="without a cache: the whole prompt")
    arguments.add_argument(
        "--input", action="append", required=True, help="may be empty, and given several times"
    )
    arguments.add_argument("--max_new_tokens", type=int, default=64)
    arguments.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    arguments.add_argument("--top_k", type=int, default=0, help="0: all tokens")
    arguments.add_argument("--top_p", type=float, default=1.0)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    with exit_on_user_error():
        set_up_libraries()
        gists = GistCache.load(options.gist) if options.gist else None
        outputs = load(
            options.model, dtype=options.dtype, adapter=options.adapter, base=options.base
        ).generate(
            gists,
            inputs=options.input,
            instructions=options.instruction,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
        )
        print("\n".join(text.replace("\n", "\\n") for text in outputs))


if __name__ == "__main__":
    main()
