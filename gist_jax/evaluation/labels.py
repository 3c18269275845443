"""A model's own outputs for the examples of a source: what a teacher says, to train on.

They are made in parts, each whole or absent, so that a command that was killed goes on with the next.
Of several processes each makes every so many-th part, and the first puts them together.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from absl import logging
from tqdm import tqdm

from gist_jax.data.sources import Examples
from gist_jax.evaluation.predict import complete, prompts_of
from gist_jax.inference.continuous import Row
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.sampling import Sampling
from gist_jax.io import atomic_directory, atomic_write
from gist_jax.parts import Parts
from gist_jax.training.distributed import is_first, wait_for_all

PART = 256  # examples


class Labelling(NamedTuple):
    """How outputs are written."""

    num_outputs: int  # for every example
    sampling: Sampling | None  # None: the likeliest tokens
    seed: int
    max_new_tokens: int
    max_input_length: int  # of a prompt, which is cut
    batch_size: int


def label(
    model: LanguageModel,
    splits: Mapping[str, Examples],
    output: pathlib.Path,
    options: Labelling,
    made_of: Mapping[str, Any],
) -> None:
    """Writes `SPLIT.jsonl` with records of instruction, input and output for every split.

    Args:
      output: a directory, which appears when all is there.
      made_of: what the outputs depend on, as JSON has it: parts of another kind are refused.

    Raises:
      UserError: if there are parts that were made of something else.
    """
    parts = Parts(output)
    if is_first():
        parts.begin({**made_of, "examples of a part": PART})
    wait_for_all("labelling begins")
    work = [(name, start) for name in splits for start in range(0, len(splits[name]), PART)]
    mine = work[jax.process_index() :: jax.process_count()]
    left = [(name, start) for name, start in mine if not parts.path(_name(name, start)).exists()]
    total = sum(min(PART, len(splits[name]) - start) for name, start in left) * options.num_outputs
    cut = 0
    with tqdm(total=total, desc="labelling", unit="output", disable=not is_first()) as bar:
        for name, start in left:
            examples = [splits[name][i] for i in range(start, min(start + PART, len(splits[name])))]
            records, of_these = _labelled(model, examples, options, start, bar)
            with atomic_write(parts.path(_name(name, start))) as tmp:
                tmp.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
            cut += of_these
    if cut:
        logging.warning("%d outputs have no end: they were cut at --max_new_tokens", cut)
    wait_for_all("labelled")
    if is_first():
        with atomic_directory(output) as tmp:
            for name in splits:
                with (tmp / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                    for start in range(0, len(splits[name]), PART):
                        file.write(parts.path(_name(name, start)).read_text(encoding="utf-8"))
        parts.remove()


def _labelled(
    model: LanguageModel, examples: list[dict[str, str]], options: Labelling, start: int, bar: Any
) -> tuple[list[dict[str, str]], int]:
    """The records of a part, and how many outputs have no end."""
    prompts = prompts_of(model, examples, options.max_input_length)
    rows = [
        Row(ids, None, options.max_new_tokens, options.sampling, options.seed + output, start + i)
        for i, ids in enumerate(prompts)
        for output in range(options.num_outputs)
    ]
    complete(model, rows, options.batch_size, tick=bar.update)
    texts = [model.tokenizer.decode(row.output) for row in rows]
    records = [{**examples[i // options.num_outputs], "output": text} for i, text in enumerate(texts)]
    return records, sum(row.reason == "length" for row in rows)


def _name(split: str, start: int) -> str:
    return f"{split}-{start:09}.jsonl"
