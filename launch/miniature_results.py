"""What launch/miniature.py says of its runs: a page in Markdown, and a figure of how they learned."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from gist_jax.data.batching import batches_in_order, training_batches
from gist_jax.evaluation.comparison import Compared, compare, number, rows, short
from gist_jax.evaluation.intervals import means
from gist_jax.evaluation.loss import examples_of_splits
from gist_jax.evaluation.ngram import NGram, texts_of
from gist_jax.evaluation.rouge import ALL_METRICS
from gist_jax.evaluation.runs import read_runs
from gist_jax.io import atomic_write, format_table, read_json, write_json
from gist_jax.training.losses import ALL
from gist_jax.training.run import prepare
from gist_jax.workdir import CONFIG, best_evaluation, read_metrics

SIDE_BY_SIDE = 5  # so many good outputs, and as many bad ones
ROUGE_L = ALL_METRICS.index("rougeL")


def write_ngrams(workdir: pathlib.Path, path: pathlib.Path, orders: Sequence[int]) -> None:
    """Writes losses of n-gram models of the very tokens a base was trained on, if they are not there.

    They are "split/nats_per_byte" by order, of the examples that the base was evaluated on.
    """
    if path.exists():
        return
    run = prepare(ConfigDict(read_json(workdir / CONFIG)), workdir)
    data, template = run.config.data, run.template
    options = dict(
        batch_size=data.batch_size,
        max_length=data.max_length,
        max_output_length=data.max_output_length,
        predicts_prompt=run.config.loss.tokens == ALL,
    )
    stream = training_batches(run.examples, template, pack=data.pack, seed=run.config.seed, **options)
    batches = itertools.islice(stream, run.config.num_steps)
    batches = tqdm(batches, "counting n-grams", run.config.num_steps, unit="batch")
    texts = [ids for batch in batches for ids, _ in texts_of(batch)]
    splits = examples_of_splits(run)
    losses: dict[str, dict[str, float]] = {}
    for order in orders:
        model = NGram(texts, order, template.tokenizer.vocab_size)
        losses[str(order)] = {}
        for name, examples in splits.items():
            nats, num_bytes = 0.0, 0
            for batch in batches_in_order(examples, template, **options):
                for ids, weights in texts_of(batch):
                    counts = weights > 0
                    nats -= float(np.log(model.probabilities(ids))[counts].sum())
                    num_bytes += template.tokenizer.num_bytes(ids[counts])
            losses[str(order)][f"{name}/nats_per_byte"] = nats / num_bytes
    write_json(path, losses)


def write_results(output: pathlib.Path) -> None:
    """Writes results.md and learning.png of finished runs."""
    runs, _ = read_runs([output / "runs"])
    compared = compare(runs)
    parts = [
        "# Results in miniature",
        "## The base",
        _base_table(output),
        "## Table 1",
        _table(rows(compared)),
        *map(_gap, compared),
        "## Side by side",
        *_side_by_side(next(part for part in compared if part.split == "validation_seen")),
    ]
    _draw_learning(output, [run.name for run in runs])
    with atomic_write(output / "results.md") as tmp:
        tmp.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _base_table(output: pathlib.Path) -> str:
    """Losses of the base and of n-gram models beside it."""
    metric = read_json(output / "base" / CONFIG)["checkpoint"]["metric"]
    found = {"base": best_evaluation(output / "base", metric)}
    for order, losses in read_json(output / "ngrams.json").items():
        found[f"{order}-gram"] = losses
    names = [name for name in found["base"] if name.endswith("nats_per_byte")]
    header = ["nats per byte", *(name.partition("/")[0] for name in names)]
    lines = [[model, *(f"{losses[name]:.3f}" for name in names)] for model, losses in found.items()]
    return format_table([header, *lines], markdown=True)


def _table(table: Sequence[dict[str, Any]]) -> str:
    """A line for each run: ROUGE-L and recovery of every split, with intervals."""
    splits = list(dict.fromkeys(row["split"] for row in table))
    header = ["run", "k", *(f"{x}{short(split)}" for split in splits for x in ("", "recovery, "))]
    lines = {row["run"]: [row["run"], row["k"]] for row in table}
    for row in table:
        for name, unit in (("rougeL", ""), ("recovery_rougeL", " %")):
            value, interval = number(row, name, unit)
            lines[row["run"]].append(f"{value} ({interval})" if interval else value)
    return format_table([header, *lines.values()], left=1, markdown=True)


def _gap(part: Compared) -> str:
    """How far pos_control is ahead of neg_control, pair by pair, in half widths of the interval."""
    by_name = {run.name: found.values for run, found in zip(part.runs, part.scored, strict=True)}
    difference = by_name["pos_control"] - by_name["neg_control"]
    gap = means(difference)[ROUGE_L]
    half = (gap.high - gap.low) / 2
    return (
        f"{part.split}: pos_control is {gap.value:.1f} ROUGE-L ({gap.low:.1f} to {gap.high:.1f}) ahead "
        f"of neg_control, {gap.value / max(half, 1e-9):.1f} times half the width of that interval."
    )


def _side_by_side(part: Compared) -> list[str]:
    """The first examples that gist-1 does well, and the first that it does badly."""
    of_run = {run.name: found for run, found in zip(part.runs, part.scored, strict=True)}
    values = of_run["gist-1"].values[:, ROUGE_L]
    chosen = [*np.flatnonzero(values >= 99)[:SIDE_BY_SIDE], *np.flatnonzero(values < 20)[:SIDE_BY_SIDE]]
    shown = []
    for row in chosen:
        record = of_run["gist-1"].records[row]
        lines = [f"- **instruction** {_one_line(record['instruction'])}"]
        lines += [f"  **{name}** {_one_line(record[name])}" for name in ("input", "reference")]
        for name, found in of_run.items():
            lines.append(f"  **{name}** {_one_line(found.records[row]['prediction'])}")
        shown.append("  \n".join(lines))
    return shown


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())


def _draw_learning(output: pathlib.Path, names: Sequence[str]) -> None:
    """learning.png: losses of the base on what it was not trained on, and ROUGE-L of all others."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (of_base, of_runs) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    lines = read_metrics(output / "base")
    for name in ("validation_books", "validation_instructions"):
        points = [(x["step"], x[f"{name}/nats_per_byte"]) for x in lines if f"{name}/loss" in x]
        of_base.plot(*zip(*points, strict=True), marker=".", label=name.removeprefix("validation_"))
    of_base.set(title="base", xlabel="step", ylabel="nats per byte")
    for name in names:
        metric = "validation_seen/rougeL"
        points = [(x["step"], x[metric]) for x in read_metrics(output / "runs" / name) if metric in x]
        of_runs.plot(*zip(*points, strict=True), marker=".", label=name)
    of_runs.set(title="finetuned, seen instructions", xlabel="step", ylabel="ROUGE-L")
    for axes in (of_base, of_runs):
        axes.legend(frameon=False, fontsize="small")
        axes.grid(alpha=0.3)
    with atomic_write(output / "learning.png") as tmp:
        figure.savefig(tmp, dpi=150, format="png")
    plt.close(figure)
