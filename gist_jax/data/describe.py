"""Says what is in a source of data: lengths in tokens, what would be cut, duplicates and leaks.

python -m gist_jax.data.describe --source=hf:databricks/databricks-dolly-15k --tokenizer=DIR --output=DIR

A leak is an example of another split whose instruction, or instruction and input, is in train: exactly,
or normalised (lower case, white space and punctuation as one space). Lengths are of what stands in a
prompt, with what the template writes around a text.
"""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from gist_jax.cli import exit_on_user_error, nonempty, parser
from gist_jax.data import instructions
from gist_jax.data.chat_template import ChatTemplate
from gist_jax.data.fields import FIELDS
from gist_jax.data.mixture import Mixture
from gist_jax.data.prompt_template import CHAT, PAPER, PromptTemplate
from gist_jax.data.rows import count_cut
from gist_jax.data.sources import EMBEDDED, Examples, first, load_data
from gist_jax.data.token_cache import token_cache
from gist_jax.data.tokenization import SPECIAL_TOKENS, Tokenizer, from_tokenizers, load_tokenizer
from gist_jax.errors import UserError
from gist_jax.io import format_table, write_csv

SAMPLE = 20_000  # so many examples of the embedded corpus, which has no end, are looked at
PERCENTILES = (50, 90, 99, 100)


def normalized(text: str) -> str:
    """Lower case, with one space for white space and punctuation: "Add  Tea!" -> "add tea"."""
    return " ".join(re.findall(r"\w+", text.lower()))


def describe_lengths(
    lengths: dict[str, np.ndarray], template: PromptTemplate, max_length: int
) -> list[dict[str, Any]]:
    """A row per split and field: mean and percentiles of its tokens; and how many examples are cut.

    Args:
      lengths: of instruction, input and output, int `[N, 3]`, by split.
    """
    table: list[dict[str, Any]] = []
    for split, of_split in lengths.items():
        cut = count_cut(of_split, template, max_length, max_length)
        for i, field in enumerate(FIELDS):
            row: dict[str, Any] = {"split": split, "field": field, "examples": len(of_split)}
            row["mean"] = round(float(of_split[:, i].mean()), 1)
            row |= {f"p{p}": int(np.percentile(of_split[:, i], p)) for p in PERCENTILES}
            table.append({**row, "cut": cut})
    return table


def describe_overlap(splits: dict[str, Examples]) -> list[dict[str, Any]]:
    """A row per split: examples that it has twice, and those that train has too."""

    keys: dict[str, Callable[[str, str], str]] = {
        "instruction": lambda instruction, _: instruction,
        "instruction and input": lambda instruction, text: f"{instruction}\n{text}",
        "instruction, normalized": lambda instruction, _: normalized(instruction),
        "both, normalized": lambda instruction, text: normalized(f"{instruction}\n{text}"),
    }
    texts = {  # read once, which is what takes long
        split: [(e["instruction"], e["input"]) for e in tqdm(examples, split, unit="example")]
        for split, examples in splits.items()
    }
    table: list[dict[str, Any]] = []
    for name, key in keys.items():
        of_train = {key(*fields) for fields in texts.get("train", ())}
        for split, fields_of_split in texts.items():
            found = [key(*fields) for fields in fields_of_split]
            row = {"same": name, "split": split, "examples": len(found)}
            row["duplicates"] = len(found) - len(set(found))
            row["in train"] = sum(x in of_train for x in found) if split != "train" else ""
            table.append(row)
    return table


def draw(lengths: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Histograms of the lengths of each field, a line per split, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(FIELDS), figsize=(12, 3.5), layout="constrained")
    for i, (field, axis) in enumerate(zip(FIELDS, axes, strict=True)):
        longest = max(int(x[:, i].max()) for x in lengths.values())
        edges = np.unique(np.geomspace(1, longest + 1, 40).astype(int))
        for split, of_split in lengths.items():
            shares = np.histogram(of_split[:, i], edges)[0] / len(of_split)
            axis.stairs(100 * shares, edges, label=split)
        axis.set(title=field, xlabel="tokens", xscale="log")
    axes[0].set_ylabel("% of examples")
    axes[-1].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _as_text(table: list[dict[str, Any]], left: int) -> str:
    lines = [
        list(table[0]),
        *([f"{v:,}" if type(v) is int else str(v) for v in r.values()] for r in table),
    ]
    return format_table(lines, left)


def _finite(examples: Examples) -> Examples:
    """The examples, but of the embedded corpus the first SAMPLE; those of a mixture as one list."""
    if isinstance(examples, instructions.Corpus):
        return first(examples, SAMPLE)
    if isinstance(examples, Mixture):
        return [example for part in examples.parts for example in _finite(part)]
    return examples


def _tokenizer(name: str | None, source: str) -> Tokenizer:
    if name:
        return load_tokenizer(name)
    if source == EMBEDDED:
        return from_tokenizers(instructions.load_tokenizer(), SPECIAL_TOKENS)
    raise UserError("give --tokenizer, a directory or a file, to measure lengths in its tokens")


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    arguments.add_argument("--source", required=True, type=nonempty, help="as config.data.source")
    arguments.add_argument("--tokenizer", help="directory or file; needed but for the embedded corpus")
    arguments.add_argument("--template", default=PAPER, choices=(PAPER, CHAT))
    arguments.add_argument("--max_length", type=int, default=512, help="tokens of a row")
    arguments.add_argument("--output", required=True, type=pathlib.Path, help="folder for CSV and PNG")
    options = arguments.parse_args()
    with exit_on_user_error():
        data = load_data(options.source)
        tokenizer = _tokenizer(options.tokenizer, options.source)
        chat = ChatTemplate.of_tokenizer(tokenizer) if options.template == CHAT else None
        template = PromptTemplate(tokenizer, 1, chat=chat)
        splits = {name: _finite(split) for name, split in data.splits.items()}
        lengths = {
            name: token_cache(split, template, f"{data.fingerprint} {name}", name).lengths()
            if split is data.splits[name]  # as a run of training finds them, or leaves them
            else np.array([[len(part) for part in e[:3]] for e in template.encode(list(split))])
            for name, split in splits.items()
        }
        sizes = describe_lengths(lengths, template, options.max_length)
        overlap = describe_overlap(splits)
        write_csv(options.output / "lengths.csv", sizes)
        write_csv(options.output / "overlap.csv", overlap)
        draw(lengths, options.output / "lengths.png")
        print(_as_text(sizes, 2), end="\n\n")
        print(_as_text(overlap, 2))
        print(f"\nIn {options.output}/: lengths.csv, overlap.csv and lengths.png.")


if __name__ == "__main__":
    main()
