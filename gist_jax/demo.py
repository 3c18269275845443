"""The whole idea in one run: trains gisting and its controls, then shows what it costs and saves.

python -m gist_jax.demo --output=demo
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from gist_jax.benchmark.measure import BenchmarkModel, measure
from gist_jax.benchmark.report import as_text
from gist_jax.benchmark.workload import Workload
from gist_jax.cli import (
    add_config,
    exit_on_user_error,
    load_config,
    parse_with_config,
    parser,
    set_up_libraries,
)
from gist_jax.data.sources import Examples, first, load_splits
from gist_jax.evaluation import report
from gist_jax.evaluation.predict import evaluator
from gist_jax.gist import CONDITIONS
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.load import load
from gist_jax.io import read_json, write_csv
from gist_jax.training.loop import train
from gist_jax.training.run import prepare
from gist_jax.workdir import CONFIG, best_evaluation

SHOWN = 3  # unseen instructions to compress
BATCH = 64
ROUNDS = 10


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    add_config(arguments, default="quickstart", help="config of all three runs")
    arguments.add_argument("--output", default="demo", help="folder for checkpoints, CSV and PNG")
    options, settings = parse_with_config(arguments)
    with exit_on_user_error():
        set_up_libraries()
        output = pathlib.Path(options.output)
        metrics = {}
        for condition in CONDITIONS:
            config = load_config(options.config, [*settings, f"--config.condition={condition}"])
            metrics[condition] = _trained(config, output / condition)
        table = report.rows(metrics)
        write_csv(output / "results.csv", table)
        report.write_figure(output / "results.png", table)
        print(report.as_text(table), end="\n\n")
        model = load(output / "gist")
        source = read_json(output / "gist" / CONFIG)["data"]["source"]
        examples = load_splits(source)["validation_unseen"]
        _show_generation(model, first(examples, SHOWN))
        _show_saving(model, examples[0]["instruction"], [e["input"] for e in first(examples, BATCH)])
        print(f"\nIn {output}/: results.csv, results.png, and a workdir with checkpoints per condition.")


def _trained(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Metrics of the best checkpoint; a run that was stopped is resumed, one that is done only read."""
    print(f"{config.condition}: {config.num_steps} steps in {workdir}", flush=True)
    run = prepare(config, workdir)
    train(run, evaluator(run))
    return best_evaluation(workdir, config.checkpoint.metric)


def _show_generation(model: LanguageModel, examples: Examples) -> None:
    instructions, inputs = ([e[field] for e in examples] for field in ("instruction", "input"))
    gists = model.compress(instructions)
    cached = model.generate(gists, inputs=inputs, max_new_tokens=16)
    full = model.generate(instructions=instructions, inputs=inputs, max_new_tokens=16)
    per_token = gists.nbytes / np.size(gists.layout.segment)
    for i, instruction in enumerate(instructions):
        tokens = len(model.template.instruction_ids(instruction))
        print(f"instruction      {instruction}")
        print(f"input            {inputs[i]}")
        print(f"from the cache   {cached[i]}")
        print(f"from the prompt  {full[i]}")
        print(f"reference        {examples[i]['output']}")
        print(f"cache            {tokens * per_token:,.0f} -> {gists[i].nbytes:,} bytes\n")


def _show_saving(model: LanguageModel, instruction: str, inputs: Sequence[str]) -> None:
    template, gists = model.template, model.num_gist_tokens
    length = len(template.instruction_ids(instruction)) - gists
    longest = max(len(template.input_ids(text)) for text in inputs)
    workload = Workload(length, longest, 16, len(inputs), gists, one_instruction=True)
    timed = BenchmarkModel(model.config, model.params, model.tokenizer.gist_id)
    print(f"What it saves of {len(inputs)} requests at a time:")
    print(as_text(measure(timed, workload, rounds=ROUNDS, tick=lambda: None)))


if __name__ == "__main__":
    main()
