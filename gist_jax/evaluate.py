"""Generates outputs for a split and scores them, or scores a file of predictions.

python -m gist_jax.evaluate --model=DIR --split=validation_unseen --output=preds.csv
python -m gist_jax.evaluate --predictions=preds.csv
"""

import json
import pathlib

from gist_jax.command_line import add_model, one_sentence_errors, parser
from gist_jax.data.sources import EMBEDDED, load_splits
from gist_jax.evaluation.predict import predict, read_predictions, write_predictions
from gist_jax.evaluation.rouge import score
from gist_jax.inference.load import load


def main() -> None:
    arguments = parser("Score a model on a split, or a file of predictions (ROUGE, exact match).")
    add_model(arguments, required=False)
    arguments.add_argument("--predictions", help="score this CSV (columns reference, prediction)")
    arguments.add_argument("--split", default="validation_seen")
    arguments.add_argument(
        "--source", help="data, as config.data.source; by default what the workdir was trained on"
    )
    arguments.add_argument("--output", help="CSV to write the predictions to")
    arguments.add_argument("--num_examples", type=int, help="only the first so many")
    arguments.add_argument("--batch_size", type=int, default=64)
    arguments.add_argument("--max_new_tokens", type=int, default=64)
    arguments.add_argument("--max_input_length", type=int, default=512, help="tokens of a prompt")
    options = arguments.parse_args()
    if (options.model is None) == (options.predictions is None):
        arguments.error("give either --model or --predictions")
    with one_sentence_errors():
        records = read_predictions(options.predictions) if options.predictions else _predict(options)
        scores = score([r["prediction"] for r in records], [r["reference"] for r in records])
        print("  ".join(f"{name} {value:.2f}" for name, value in scores.items()))


def _predict(options) -> list[dict[str, str]]:
    splits = load_splits(options.source or _trained_on(options.model))
    if options.split not in splits:
        raise ValueError(f"there is no split {options.split!r}: choose from {', '.join(splits)}")
    examples = splits[options.split]
    count = min(options.num_examples or len(examples), len(examples))
    records = predict(
        load(options.model, options.dtype),
        [examples[i] for i in range(count)],
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        max_input_length=options.max_input_length,
        description=options.split,
    )
    if options.output:
        write_predictions(options.output, records)
    return records


def _trained_on(model: str) -> str:
    path = pathlib.Path(model) / "config.json"
    fields = json.loads(path.read_text()) if path.exists() else {}
    return fields.get("data", {}).get("source", EMBEDDED)


if __name__ == "__main__":
    main()
