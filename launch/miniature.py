"""The paper's Table 1 in miniature: a base pretrained on real text, and all that is finetuned from it.

python launch/miniature.py --data=DIR --output=DIR

The data are books/books.jsonl.xz, records {"text": …}; superni/ with train.json, validation_seen.json
and validation_unseen.json, records of Super-NaturalInstructions with the field task; and
alpaca/alpaca_data.json. The same command resumes where it was stopped. It leaves workdirs, report/ (as
of gist_jax.report), learning.png and results.md in the output folder.
"""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from miniature_data import prepare_data
from miniature_results import write_ngrams, write_results
from sweep import STOPPED, run_to_end

from gist_jax.cli import exit_on_user_error, output_directory, parser
from gist_jax.errors import UserError
from gist_jax.io import read_json, write_json

BOOKS, INSTRUCTIONS = 1, 2  # weights in pretraining, of examples: about as many tokens of each


@dataclasses.dataclass(frozen=True)
class Size:
    """Settings of the configs, besides what they say themselves."""

    base: dict[str, Any]
    finetuning: dict[str, Any]
    ngram: int = 5


SIZES = {
    "cpu": Size({}, {}),  # two cores
    # Some 100 million parameters, for one GPU.
    "gpu": Size(
        {
            "num_steps": 6000,
            "dtype": "bfloat16",
            "model.hidden_size": 768,
            "model.intermediate_size": 2048,
            "model.num_layers": 12,
            "model.num_heads": 12,
            "model.num_kv_heads": 12,
            "model.head_dim": 64,
            "data.tokenizer": "bpe:16384",
            "data.batch_size": 128,
            "optimizer.learning_rate": 6e-4,
            "remat": "none",
        },
        {
            "dtype": "bfloat16",
            "data.batch_size": 64,
            "optimizer.learning_rate": 2e-4,
            "remat": "none",
        },
    ),
    # All that the others do, in two minutes.
    "tiny": Size(
        {
            "num_steps": 60,
            "model.hidden_size": 32,
            "model.intermediate_size": 64,
            "model.num_layers": 1,
            "model.num_heads": 2,
            "model.num_kv_heads": 2,
            "model.head_dim": 16,
            "data.tokenizer": "bpe:300",
            "data.max_length": 96,
            "data.batch_size": 8,
            "optimizer.learning_rate": 1e-2,
            "optimizer.warmup_steps": 5,
            "evaluation.every": 30,
            "evaluation.num_examples": 16,
            "checkpoint.every": 10,
        },
        {
            "num_steps": 40,
            "data.max_length": 96,
            "data.batch_size": 8,
            "optimizer.learning_rate": 1e-2,
            "optimizer.warmup_steps": 2,
            "evaluation.every": 20,
            "evaluation.num_examples": 16,
            "evaluation.max_new_tokens": 4,
            "evaluation.max_input_length": 80,
            "checkpoint.every": 10,
        },
        ngram=3,
    ),
}


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", required=True, type=pathlib.Path, help="folder of the data")
    arguments.add_argument("--output", required=True, type=output_directory, help="folder to write")
    arguments.add_argument("--size", choices=SIZES, default="cpu", help="of models and runs")
    options = arguments.parse_args()
    with exit_on_user_error():
        output, size = options.output, SIZES[options.size]
        _check_same(output, options.size)
        prepare_data(options.data, output / "data")
        for workdir, command in commands(output, size):
            print(shlex.join(command), flush=True)
            _run(command)
            if workdir.name == "base":
                write_ngrams(workdir, output / "ngrams.json", (1, size.ngram))
        report = [sys.executable, "-m", "gist_jax.report", str(output / "runs")]
        _run([*report, f"--output={output / 'report'}"])
        write_results(output)
        print(f"In {output}/: results.md, learning.png, and report/.")


def _check_same(output: pathlib.Path, size: str) -> None:
    file = output / "size.json"
    if file.exists() and read_json(file) != {"size": size}:
        raise UserError(f"{output} is of --size={read_json(file).get('size')}: choose another folder")
    write_json(file, {"size": size})


def _run(command: list[str]) -> None:
    """Runs a command to its end, and ends as it ends where it fails or was stopped."""
    if code := run_to_end(command):
        sys.exit(143 if code in STOPPED else code)


def commands(output: pathlib.Path, size: Size) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """The workdir of every run, and what trains it, in their order."""
    data, runs = output / "data", output / "runs"
    text = f"{BOOKS}*json:{data / 'books'} + {INSTRUCTIONS}*json:{data / 'instructions'}"
    base = output / "base"
    yield _train("miniature_base", base, size.base | {"data.source": text})

    def finetuned(name: str, **fields: Any) -> tuple[pathlib.Path, list[str]]:
        given: dict[str, Any] = {"pretrained": base, "data.source": data / "tasks"}
        fields = {key.replace("__", "."): value for key, value in fields.items()}
        return _train("miniature_gist", runs / name, size.finetuning | given | fields)

    yield finetuned("pos_control", condition="pos_control")
    yield finetuned("neg_control", condition="neg_control")
    for k in (1, 5):
        yield finetuned(f"gist-{k}", num_gist_tokens=k)
    # Gist pretraining: the first half of a window is compressed, the rest predicted from it.
    compressed = output / "compressed"
    halves = {
        "pretrained": base,
        "gist_token_choices": (1, 5),
        "data.source": f"json:{data / 'books'}?compress=0.5",
        "evaluation.kind": "loss",
        "checkpoint.metric": "validation_books/nats_per_byte",
    }
    yield _train("miniature_gist", compressed, size.finetuning | halves)
    for k in (1, 5):
        yield finetuned(f"gist-{k}-pretrained", num_gist_tokens=k, pretrained=compressed)
    # A base that follows instructions, frozen beside an adapter that is distilled from it.
    yield finetuned("plain", condition="pos_control", num_gist_tokens=0)
    adapter = {"adapter__rank": 16, "adapter__alpha": 16.0, "loss__kind": "distill"}
    yield finetuned("adapter-1", pretrained=runs / "plain", **adapter)


def _train(
    config: str, workdir: pathlib.Path, settings: Mapping[str, Any]
) -> tuple[pathlib.Path, list[str]]:
    train = [sys.executable, "-m", "gist_jax.train", f"--config={config}", f"--workdir={workdir}"]
    return workdir, [*train, *(f"--config.{name}={value}" for name, value in settings.items())]


if __name__ == "__main__":
    main()
