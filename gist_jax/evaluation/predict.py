"""Outputs of a model for the examples of a split, as records and as CSV."""

import csv
import pathlib
from collections.abc import Sequence

from tqdm import tqdm

from gist_jax.data.sources import Example
from gist_jax.errors import UserError
from gist_jax.files import whole_file
from gist_jax.inference.language_model import LanguageModel
from gist_jax.training.distributed import is_first

FIELDS = ("instruction", "input", "reference", "prediction")


def predict(
    model: LanguageModel,
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_new_tokens: int,
    max_input_length: int,
    description: str = "evaluating",
) -> list[dict[str, str]]:
    """Greedy outputs from the whole prompts, under the mask the model was trained with.

    Prompts are batched by length, so that little is padded; records keep the order of the examples.
    A prompt longer than `max_input_length` is cut, see `Prompts.prompt_ids`.
    """
    prompts = []
    for example in examples:
        texts = example["instruction"], example["input"]
        prompts.append(model.prompts.prompt_ids(*texts, max_input_length))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    with tqdm(
        total=len(prompts), desc=description, unit="example", leave=False, disable=not is_first()
    ) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids = model.generate_ids([prompts[i] for i in chosen], None, max_new_tokens)
            for i, row in zip(chosen, ids, strict=True):
                texts[i] = model.tokenizer.decode(row)
            bar.update(len(chosen))
    return [
        dict(zip(FIELDS, (e["instruction"], e["input"], e["output"], text), strict=True))
        for e, text in zip(examples, texts, strict=True)
    ]


def write_predictions(path: str | pathlib.Path, records: Sequence[dict[str, str]]) -> None:
    """Writes records as CSV, whole or not at all."""
    with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(records)


def read_predictions(path: str | pathlib.Path) -> list[dict[str, str]]:
    """Reads a CSV with at least the columns reference and prediction.

    Raises:
      ValueError: if it cannot be read, is empty or lacks a column.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read predictions from {path}: {error}") from None
    if not records or any(r.get("reference") is None or r.get("prediction") is None for r in records):
        raise UserError(f"{path} must have rows with the columns reference and prediction")
    return records
