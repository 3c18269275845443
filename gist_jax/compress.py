"""Compresses instructions into a gist cache file.

python -m gist_jax.compress --model=DIR --instruction="Count the words." --output=x.gist.safetensors
"""

from gist_jax.command_line import add_model, one_sentence_errors, output_file, parser
from gist_jax.inference.load import load


def main() -> None:
    arguments = parser("Compress instructions into a gist cache file.")
    add_model(arguments)
    arguments.add_argument(
        "--instruction", action="append", required=True, help="may be given several times"
    )
    arguments.add_argument(
        "--output", type=output_file, required=True, help="file to write, *.gist.safetensors"
    )
    options = arguments.parse_args()
    with one_sentence_errors():
        gists = load(options.model, options.dtype).compress(options.instruction)
        gists.save(options.output)
        print(f"{options.output}: {len(gists)} instruction(s), {gists.nbytes:,} bytes")


if __name__ == "__main__":
    main()
