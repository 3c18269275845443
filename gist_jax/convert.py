"""Takes models from Hugging Face format and back, and applies weight diffs.

python -m gist_jax.convert import  --model=DIR_OR_HUB_ID --output=WORKDIR
python -m gist_jax.convert export  --model=WORKDIR --output=DIR --dtype=bfloat16
python -m gist_jax.convert recover --base=DIR --diff=DIR --output=DIR
python -m gist_jax.convert diff    --tuned=DIR --base=DIR --output=DIR
python -m gist_jax.convert prefix  --gist=FILE --model=DIR --format=transformers --output=FILE
"""

import argparse
import pathlib
from collections.abc import Callable

from gist_jax.cli import (
    DTYPES,
    MODEL_HELP,
    OUTPUT_HELP,
    add_model,
    add_subcommand,
    exit_on_user_error,
    output_directory,
    output_file,
    parser,
    set_up_libraries,
)
from gist_jax.data.tokenization import load_tokenizer
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.load import export_adapter, is_adapter, load, load_chosen
from gist_jax.interop import weight_diff
from gist_jax.interop.export import EXPORT_DTYPES
from gist_jax.interop.huggingface import Checkpoint, find
from gist_jax.io import atomic_directory, write_json
from gist_jax.workdir import CONFIG, TOKENIZER, Description, write_model, write_params

HUB = "directory in Hugging Face format, or hub id"


def _import(options: argparse.Namespace) -> None:
    directory = find(options.model)
    checkpoint, tokenizer = Checkpoint(directory), load_tokenizer(directory)
    condition, num_gist_tokens, template, mask = checkpoint.gist_settings(tokenizer)
    params = checkpoint.load_for(tokenizer, options.dtype)
    with atomic_directory(options.output) as tmp:
        tokenizer.save(tmp / TOKENIZER)
        # A model that had no gist token has one now, which holds nothing yet.
        described = checkpoint.config_for(tokenizer), condition, max(num_gist_tokens, 1), template
        write_model(tmp, Description(*described, mask=mask))
        write_json(tmp / CONFIG, {})
        write_params(tmp, params)


def _export(options: argparse.Namespace) -> None:
    if is_adapter(options.model):
        print(
            "an adapter acts at gist tokens only, so that it cannot be merged into its base: it is "
            "written as it is, and the gist caches that it makes serve with the bare base"
        )
        export_adapter(options.model, options.output)
    else:
        load(options.model).export(options.output, options.dtype)


def _recover(options: argparse.Namespace) -> None:
    name = pathlib.PurePath(options.diff).name
    weight_diff.recover(find(options.base), find(options.diff), options.output, name)


def _diff(options: argparse.Namespace) -> None:
    weight_diff.make_diff(find(options.tuned), find(options.base), options.output)


def _prefix(options: argparse.Namespace) -> None:
    model = load_chosen(options)
    prefix = model.prefix(GistCache.load(options.gist))
    if options.format == "mlx":
        prefix.save_mlx(options.output)
    else:
        prefix.save(options.output)


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    subcommands = arguments.add_subparsers(required=True, metavar="import|export|recover|diff|prefix")

    def add(
        name: str, run: Callable[[argparse.Namespace], None], meaning: str
    ) -> argparse.ArgumentParser:
        subcommand = add_subcommand(subcommands, name, run, meaning)
        subcommand.add_argument("--output", required=True, type=output_directory, help=OUTPUT_HELP)
        return subcommand

    subcommand = add("import", _import, "make a workdir of a checkpoint, with a gist token")
    subcommand.add_argument("--model", required=True, help=HUB)
    subcommand.add_argument("--dtype", default="float32", choices=DTYPES)
    subcommand = add("export", _export, "write a model in Hugging Face format, or an adapter alone")
    subcommand.add_argument("--model", required=True, help=MODEL_HELP)
    subcommand.add_argument("--dtype", default="float32", choices=EXPORT_DTYPES)
    subcommand = add("recover", _recover, "add a weight diff to the weights it was made against")
    subcommand.add_argument("--base", required=True, help=HUB)
    subcommand.add_argument("--diff", required=True, help=HUB)
    subcommand = add("diff", _diff, "write what finetuning changed")
    subcommand.add_argument("--tuned", required=True, help=HUB)
    subcommand.add_argument("--base", required=True, help=HUB)
    meaning = "make a gist cache a prefix that a stock engine takes"
    subcommand = add_subcommand(subcommands, "prefix", _prefix, meaning)
    written = "file to write, *.safetensors"
    subcommand.add_argument("--output", required=True, type=output_file, help=written)
    subcommand.add_argument("--gist", required=True, help="file of gist_jax.compress")
    add_model(subcommand)
    formats = "transformers: safetensors for a script; mlx: MLX-LM's prompt-cache file, of one gist"
    subcommand.add_argument(
        "--format", default="transformers", choices=("transformers", "mlx"), help=formats
    )
    options = arguments.parse_args()
    with exit_on_user_error():
        set_up_libraries()
        options.run(options)
        print(f"{options.output} is written")


if __name__ == "__main__":
    main()
