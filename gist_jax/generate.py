"""Generates outputs from a gist cache file, or from whole instructions.

python -m gist_jax.generate --model=DIR --gist=x.gist.safetensors --input="tea cup lamp"
"""

from gist_jax.command_line import add_model, one_sentence_errors, parser
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.load import load


def main() -> None:
    arguments = parser("Generate an output for every input, one a line; line breaks are written \\n.")
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
    with one_sentence_errors():
        gists = GistCache.load(options.gist) if options.gist else None
        outputs = load(options.model, options.dtype).generate(
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
