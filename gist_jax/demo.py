"""The whole idea in one run: trains gisting and its controls, then shows what it costs and saves.

python -m gist_jax.demo --output=demo
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from gist_jax import config_door
from gist_jax.benchmark.costs import costs
from gist_jax.benchmark.measure import Subject, measure
from gist_jax.benchmark.programs import MODES, Point
from gist_jax.benchmark.report import as_text
from gist_jax.command_line import one_sentence_errors, parser
from gist_jax.data.sources import Example, first, load_splits
from gist_jax.evaluation import report
from gist_jax.evaluation.scores import evaluator
from gist_jax.files import read_json
from gist_jax.gist import CONDITIONS
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.load import load
from gist_jax.interop.workdir import CONFIG
from gist_jax.table import write_csv
from gist_jax.training.loop import train
from gist_jax.training.metrics import best_evaluation
from gist_jax.training.run import prepare

SHOWN = 3  # unseen instructions to compress
BATCH = 64
ROUNDS = 20


def main() -> None:
    arguments = parser(__doc__.split("\n")[0])
    arguments.add_argument("--config", default="configs/quickstart.py", help="of all three runs")
    arguments.add_argument("--output", default="demo", help="folder for checkpoints, CSV and PNG")
    options = arguments.parse_args()
    with one_sentence_errors():
        output = pathlib.Path(options.output)
        scores = {c: _trained(options.config, c, output / c) for c in CONDITIONS}
        table = report.rows(scores)
        write_csv(output / "results.csv", table)
        report.write_figure(output / "results.png", table)
        print(report.as_text(table), end="\n\n")
        model = load(output / "gist")
        source = read_json(output / "gist" / CONFIG)["data"]["source"]
        examples = load_splits(source)["validation_unseen"]
        _show_generation(model, first(examples, SHOWN))
        _show_saving(model, examples[0]["instruction"], [e["input"] for e in first(examples, BATCH)])
        print(f"\nIn {output}/: results.csv, results.png, and a workdir with checkpoints per condition.")


def _trained(config_file: str, condition: str, workdir: pathlib.Path) -> dict[str, float]:
    """Scores of the best checkpoint; a run that was stopped goes on, one that is done is only read."""
    config = config_door.load([f"--config={config_file}"])
    config.condition = condition
    print(f"{condition}: {config.num_steps} steps in {workdir}", flush=True)
    run = prepare(config, workdir)
    train(run, evaluator(run))
    return best_evaluation(workdir, config.checkpoint.metric)


def _show_generation(model: LanguageModel, examples: Sequence[Example]) -> None:
    instructions, inputs = ([e[field] for e in examples] for field in ("instruction", "input"))
    gists = model.compress(instructions)
    cached = model.generate(gists, inputs=inputs, max_new_tokens=16)
    full = model.generate(instructions=instructions, inputs=inputs, max_new_tokens=16)
    per_token = gists.nbytes / np.size(gists.layout.segment)
    for i, instruction in enumerate(instructions):
        tokens = len(model.prompts.instruction_ids(instruction))
        print(f"instruction      {instruction}")
        print(f"input            {inputs[i]}")
        print(f"from the cache   {cached[i]}")
        print(f"from the prompt  {full[i]}")
        print(f"reference        {examples[i]['output']}")
        print(f"cache            {tokens * per_token:,.0f} -> {gists[i].nbytes:,} bytes\n")


def _show_saving(model: LanguageModel, instruction: str, inputs: Sequence[str]) -> None:
    prompts, gists = model.prompts, model.num_gist_tokens
    length = len(prompts.instruction_ids(instruction)) - gists
    longest = max(len(prompts.input_ids(text)) for text in inputs)
    point = Point(length, longest, 16, len(inputs), gists, one_instruction=True)
    subject = Subject(model.config, model.params, model.tokenizer.gist_id)
    counts = {mode: costs(model.config, point, mode, subject.dtype) for mode in MODES}
    print(f"What it saves of {len(inputs)} requests at a time:")
    print(as_text(measure(subject, point, counts, rounds=ROUNDS, tick=lambda: None)))


if __name__ == "__main__":
    main()
