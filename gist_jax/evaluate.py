"""Generates outputs for a split and scores them, or scores a file of predictions.

python -m gist_jax.evaluate --model=DIR --split=validation_unseen --output=preds.csv
python -m gist_jax.evaluate --predictions=preds.csv
python -m gist_jax.evaluate --predictions=preds.csv --against=others.csv
python -m gist_jax.evaluate --predictions=preds.csv --pos_control=pos.csv --neg_control=neg.csv

With --source=suite the prompts are those of `gist_jax.data.suite`, and so are what is scored besides.
"""

import argparse

from gist_jax.cli import (
    DTYPES,
    K_HELP,
    MODEL_HELP,
    add_adapter,
    add_mesh,
    exit_on_user_error,
    output_file,
    parser,
    set_up_libraries,
)
from gist_jax.data.sources import EMBEDDED, SUITE, first, load_splits
from gist_jax.errors import UserError
from gist_jax.evaluation import suite
from gist_jax.evaluation.predict import predict
from gist_jax.evaluation.predictions import Record, read_predictions
from gist_jax.evaluation.scores import as_text, scored, table
from gist_jax.inference.load import load_chosen
from gist_jax.io import read_json, write_csv
from gist_jax.storage import as_path
from gist_jax.training.config import default, evaluation_lengths
from gist_jax.workdir import CONFIG, MODEL

OTHERS = ("against", "pos_control", "neg_control")
SPLIT = "validation_seen"
FIELDS = {
    "num_examples": "only the first so many examples",
    "batch_size": "prompts at a time",
    "max_new_tokens": "longest output",
    "max_input_length": "tokens of a prompt; the inputs of longer ones are cut",
}


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help=MODEL_HELP)
    what.add_argument(
        "--predictions",
        help="score this CSV (columns instruction, input, reference, prediction; or x, y_pred, y_true)",
    )
    arguments.add_argument("--against", help="CSV of another run, to which differences are taken")
    arguments.add_argument("--pos_control", help="CSV of this control; with the other, for recovery")
    arguments.add_argument("--neg_control", help="CSV of this control")
    arguments.add_argument("--split", help=f"by default {SPLIT}, or the only one there is")
    arguments.add_argument("--output", type=output_file, help="CSV to write the predictions to")
    same = "by default as the run evaluates itself"
    arguments.add_argument("--dtype", choices=DTYPES, help=same)
    arguments.add_argument("--source", help=f"data, as config.data.source; {same}")
    add_adapter(arguments)
    add_mesh(arguments)
    arguments.add_argument("--num_gist_tokens", type=int, help=K_HELP)
    for name, meaning in FIELDS.items():
        arguments.add_argument(f"--{name}", type=int, help=f"{meaning}; {same}")
    options = arguments.parse_args()
    if options.predictions is not None and options.output is not None:
        arguments.error("--output goes with --model: --predictions are only scored")
    if (options.pos_control is None) != (options.neg_control is None):
        arguments.error("recovery needs both --pos_control and --neg_control")
    with exit_on_user_error():
        set_up_libraries()
        # Before any work.
        others = {
            name: (path, read_predictions(path))
            for name in OTHERS
            if (path := getattr(options, name)) is not None
        }
        if options.predictions is None:
            ours = "what was generated", _predict(options)
        else:
            ours = options.predictions, read_predictions(options.predictions)
        first, *rest = scored([ours, *others.values()])
        by_name = dict(zip(others, rest, strict=True))
        controls = [by_name[name] for name in OTHERS[1:] if name in by_name]
        print(f"{len(first.records)} rows")
        against = by_name.get("against")
        print(as_text(table(first, against, controls)))
        if (items := suite.items_of(first.records)) is not None:
            print(f"\n{as_text(suite.table(items, first, against))}")
            print(f"\n{suite.lost_as_text(suite.lost_literals(items, first, against))}")


def _predict(options: argparse.Namespace) -> list[Record]:
    workdir = as_path(options.model)
    # Directories in Hugging Face format have a config.json too, which describes no run.
    of_run = read_json(workdir / CONFIG) if (workdir / MODEL).exists() else {}
    evaluation = of_run.get("evaluation", default().evaluation)
    splits = load_splits(options.source or of_run.get("data", {}).get("source", EMBEDDED))
    split = options.split or (next(iter(splits)) if len(splits) == 1 else SPLIT)
    if split not in splits:
        raise UserError(f"there is no split {split!r}: choose from {', '.join(splits)}")
    usual = {**evaluation, **evaluation_lengths(evaluation, split)}
    if options.source == SUITE:
        usual["num_examples"] = len(splits[split])
    settings = {}
    for name in FIELDS:
        given = getattr(options, name)
        settings[name] = usual[name] if given is None else given
        least = 32 if name == "max_input_length" else 1
        if settings[name] < least:
            raise UserError(f"--{name} must be at least {least}, but is {settings[name]}")
    dtype = options.dtype or of_run.get("dtype", "float32")
    chosen = first(splits[split], settings.pop("num_examples"))
    model = load_chosen(options, dtype=dtype)
    if options.num_gist_tokens is not None:
        model = model.with_gist_tokens(options.num_gist_tokens)
    records = predict(model, chosen, **settings, description=split)
    if options.output:
        write_csv(options.output, records)
    return records


if __name__ == "__main__":
    main()
