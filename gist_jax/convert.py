"""Takes models from Hugging Face format and back, and applies weight diffs.

python -m gist_jax.convert import  --model=DIR_OR_HUB_ID --output=WORKDIR
python -m gist_jax.convert export  --model=WORKDIR --output=DIR --dtype=bfloat16
python -m gist_jax.convert recover --base=DIR --diff=DIR --output=DIR
python -m gist_jax.convert diff    --tuned=DIR --base=DIR --output=DIR
"""

import argparse
import pathlib

from gist_jax.command_line import one_sentence_errors, parser
from gist_jax.data.tokenization import load_tokenizer
from gist_jax.files import whole_directory, write_json
from gist_jax.inference.load import load
from gist_jax.interop import weight_diff, workdir
from gist_jax.interop.export import DTYPES
from gist_jax.interop.huggingface import Checkpoint, find


def _import(options: argparse.Namespace) -> None:
    directory = find(options.model)
    checkpoint, tokenizer = Checkpoint(directory), load_tokenizer(directory)
    trained = checkpoint.has_gist_token(tokenizer.vocab_size)
    settings = checkpoint.fields.get("gist", {})
    params = checkpoint.load_for(tokenizer, options.dtype)
    with whole_directory(options.output) as beside:
        tokenizer.save(beside / workdir.TOKENIZER)
        # The gist tokens of a model that was not trained with them hold nothing.
        condition = settings.get("condition", "gist" if trained else "pos_control")
        count = settings.get("num_gist_tokens", 1)
        workdir.save_model(beside, checkpoint.config_for(tokenizer), condition, count)
        write_json(beside / workdir.CONFIG, {})
        workdir.save_params(beside, params)


def _export(options: argparse.Namespace) -> None:
    load(options.model).export(options.output, options.dtype)


def _recover(options: argparse.Namespace) -> None:
    name = pathlib.PurePath(options.diff).name
    weight_diff.recover(find(options.base), find(options.diff), options.output, name)


def _diff(options: argparse.Namespace) -> None:
    weight_diff.make_diff(find(options.tuned), find(options.base), options.output)


DOORS = {"import": _import, "export": _export, "recover": _recover, "diff": _diff}
MODEL = "training workdir, directory in Hugging Face format, or hub id"
OUTPUT = "directory to write, which must not exist yet"


def main() -> None:
    arguments = parser("Take models from Hugging Face format and back, and apply weight diffs.")
    doors = arguments.add_subparsers(dest="door", required=True, metavar="import|export|recover|diff")
    door = doors.add_parser("import", help="make a workdir of a checkpoint, with a gist token")
    door.add_argument("--model", required=True, help="directory in Hugging Face format, or hub id")
    door.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    door = doors.add_parser("export", help="write a model in Hugging Face format")
    door.add_argument("--model", required=True, help=MODEL)
    door.add_argument("--dtype", default="float32", choices=DTYPES)
    door = doors.add_parser("recover", help="add a weight diff to the weights it was made against")
    door.add_argument("--base", required=True, help="directory or hub id")
    door.add_argument("--diff", required=True, help="directory or hub id")
    door = doors.add_parser("diff", help="write what finetuning changed")
    door.add_argument("--tuned", required=True, help="directory or hub id")
    door.add_argument("--base", required=True, help="directory or hub id")
    for door in doors.choices.values():
        door.add_argument("--output", required=True, type=pathlib.Path, help=OUTPUT)
    options = arguments.parse_args()
    with one_sentence_errors():
        DOORS[options.door](options)
        print(f"{options.output} is written")


if __name__ == "__main__":
    main()
