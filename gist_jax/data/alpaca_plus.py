"""Makes Alpaca+, the instruction data of the paper, of the files it came from.

python -m gist_jax.data.alpaca_plus --alpaca=alpaca_data.json --human=user_oriented_instructions.jsonl \\
    --self_instruct=all_instances_82K.jsonl --output=DIR

alpaca_data.json is of Stanford Alpaca, the other two are of Self-Instruct. DIR is then a source of data:
--config.data.source=DIR.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from gist_jax.cli import OUTPUT_HELP, exit_on_user_error, parser
from gist_jax.data.fields import Example, checked
from gist_jax.data.files import read_records
from gist_jax.errors import UserError
from gist_jax.io import Path, atomic_directory

SIZE = 1000  # of validation_seen and validation_unseen
EMPTY = "empty"  # stands for an output without text

# Where Self-Instruct is missing: those of its training instructions that first come up in Alpaca before
# its 1000 unseen ones are full. Found by comparing with the published split, which does not have them.
ALSO_IN_SELF_INSTRUCT = frozenset(
    {
        "What is the main idea of this text?",
        "Calculate the area of the triangle.",
        "Suggest a title for the following blog post.",
        "Find the name of the author of this book.",
        "Calculate the total cost.",
    }
)


class _SelfInstruct(NamedTuple):
    train: list[Example]
    validation_seen: list[Example]


def split(
    alpaca: Iterable[Example], human: Iterable[Example], self_instruct: Iterable[Example] = ()
) -> dict[str, list[Example]]:
    """Splits examples as the published Alpaca+ is split.

    - validation_seen: the first instance of an instruction of Self-Instruct that has at least two and
      whose first has an input, for the first 1000 such. All other instances of Self-Instruct are
      training examples, each pair of instruction and input once.
    - validation_unseen: the first 1000 examples of Alpaca with an input whose instruction is not among
      the training instructions so far. All others of Alpaca are training examples.
    - validation_human: the human examples.

    Returns:
      Examples by split. Without Self-Instruct there is no validation_seen, and training examples come
      from Alpaca alone; the other splits are the published ones.
    """
    ours = _split_self_instruct(list(self_instruct))
    train, unseen = list(ours.train), list[Example]()
    instructions = {e["instruction"] for e in train} or set(ALSO_IN_SELF_INSTRUCT)
    for example in alpaca:
        if example["input"] and len(unseen) < SIZE and example["instruction"] not in instructions:
            unseen.append(example)
        else:
            train.append(example)
            instructions.add(example["instruction"])
    seen = {"validation_seen": ours.validation_seen} if ours.validation_seen else {}
    return {"train": train, **seen, "validation_unseen": unseen, "validation_human": list(human)}


def _split_self_instruct(examples: list[Example]) -> _SelfInstruct:
    by_instruction: dict[str, list[Example]] = {}
    for example in examples:
        by_instruction.setdefault(example["instruction"], []).append(example)
    found = _SelfInstruct([], [])
    pairs = set()
    for instances in by_instruction.values():
        if len(instances) > 1 and instances[0]["input"] and len(found.validation_seen) < SIZE:
            found.validation_seen.append(instances[0])
            instances = instances[1:]
        for example in instances:
            pair = example["instruction"], example["input"]
            if pair not in pairs:
                pairs.add(pair)
                found.train.append(example)
    return found


def read_examples(path: Path, source: str) -> list[Example]:
    """The examples of a file of records, in its order; every instance of a task is one.

    Args:
      source: what is said of each, where it comes from.
    """
    found = []
    for i, record in enumerate(read_records(path)):
        instances = record.get("instances") or [record]
        if not isinstance(instances, list) or not all(isinstance(x, dict) for x in instances):
            raise UserError(f"record {i} of {path} has instances that are no list of objects")
        for instance in instances:
            fields = {**instance, "instruction": record.get("instruction")}
            example = checked(fields, i, path)
            found.append({**example, "output": example["output"] or EMPTY, "source": source})
    return found


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    arguments.add_argument("--alpaca", required=True, help="alpaca_data.json")
    arguments.add_argument("--human", required=True, help="user_oriented_instructions.jsonl")
    arguments.add_argument("--self_instruct", help="all_instances_82K.jsonl; may be missing")
    arguments.add_argument("--output", required=True, type=pathlib.Path, help=OUTPUT_HELP)
    arguments.add_argument("--tfds", help="folder in which to build the TFDS data set alpaca_plus too")
    options = arguments.parse_args()
    with exit_on_user_error():
        alpaca, human = read_examples(options.alpaca, "alpaca"), read_examples(options.human, "human")
        given = options.self_instruct
        splits = split(alpaca, human, read_examples(given, "self_instruct") if given else ())
        built = pathlib.Path(options.tfds or "", "alpaca_plus")
        if options.tfds and built.exists():
            raise UserError(f"{built} exists already: choose another folder for --tfds")
        with atomic_directory(options.output) as tmp:
            for name, examples in splits.items():
                text = json.dumps(examples, indent=1, ensure_ascii=False)
                (tmp / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        if options.tfds:
            from gist_jax.data.tfds_builder import AlpacaPlus  # takes seconds to import

            AlpacaPlus(source=str(options.output), data_dir=options.tfds).download_and_prepare()
        for name, examples in splits.items():
            print(f"{name:<18} {len(examples):>7,} examples")
        if not given:
            print(
                "Self-Instruct is missing, so there is no validation_seen. validation_unseen and "
                "validation_human are the published ones: unseen by models trained on this train.json."
            )


if __name__ == "__main__":
    main()
