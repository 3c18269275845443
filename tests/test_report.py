"""The report of a sweep: every number is recomputed from the CSV files that it is of."""

import csv
import json
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import quick
from commands import command, mistake
from html_pages import Page
from processes import QUICKLY, ROOT
from test_scores import made_up, plain_means, write
from tiny import TINY

from gist_jax import report
from gist_jax.data import suite
from gist_jax.evaluation.comparison import compare, rows, settings_of
from gist_jax.evaluation.figures import figures
from gist_jax.evaluation.predictions import FIELDS, read_predictions
from gist_jax.evaluation.runs import control, read_runs
from gist_jax.workdir import Description, write_model

SPLITS = ("validation_human", "validation_seen")
RUNS = {"gist-1": 3, "gist-2": 2, "pos_control-1": 1, "neg_control-1": 8}  # how bad, of 10
TEXT = "</script><b>&amp;"


def predictions(examples, wrong, k, seed):
    """Records in which `wrong` of 10 outputs are others."""
    rng = random.Random(seed)
    made = []
    for example in examples:
        said = "other words" if rng.random() < wrong / 10 else example["reference"]
        about = {"k": k, "instruction_tokens": 4 + len(made), "prompt_tokens": 20, "output_tokens": 3}
        made.append({**example, "prediction": said, **about, "reason": "eos"})
    return made


def make_run(workdir, condition, k, wrong, choices=(), **settings):
    """What a run leaves that was best at step 4, and then went wrong."""
    workdir.mkdir(parents=True)
    write_model(workdir, Description(TINY["llama"], condition, k, "paper", choices))
    config = quick.get_config()
    config.update(condition=condition, num_gist_tokens=k)
    config.update_from_flattened_dict(settings)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    steps = [{"step": step, "validation_seen/rougeL": value} for step, value in ((4, 9.0), (8, 5.0))]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    (workdir / "predictions").mkdir()
    for n, split in enumerate(SPLITS):
        examples = made_up(40, seed=n)
        examples[5]["instruction"] += TEXT
        good = predictions(examples, wrong, k, seed=k + n)
        write(workdir / "predictions" / f"4-{split}.csv", good)
        write(workdir / "predictions" / f"8-{split}.csv", predictions(examples, 10, k, seed=k))
        if choices:
            write(workdir / "predictions" / f"4-{split}_k1.csv", predictions(examples, wrong + 5, 1, n))
    return workdir


@pytest.fixture
def sweep(tmp_path):
    for name, wrong in RUNS.items():
        condition, k = name.split("-")
        make_run(tmp_path / "sweep" / name, condition, int(k), wrong)
    return tmp_path / "sweep"


def made(folder, monkeypatch, capsys, *more):
    """What a report prints, and its rows, Markdown and page."""
    output = folder.parent / "report"
    arguments = [str(folder), *more, f"--output={output}"]
    printed = command(report, monkeypatch, capsys, *arguments)
    with (output / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    page = (output / "index.html").read_text(encoding="utf-8")
    return printed, table, (output / "table.md").read_text(), page


def test_numbers_are_those_of_the_files(sweep, monkeypatch, capsys):
    printed, table, markdown, page = made(sweep, monkeypatch, capsys)
    order = ["pos_control-1", "gist-1", "gist-2", "neg_control-1"]
    assert [(row["split"], row["run"]) for row in table] == [(s, run) for s in SPLITS for run in order]
    metrics = ["rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match"]
    text = Page(page).text
    for row in table:
        with (sweep / row["run"] / "predictions" / f"4-{row['split']}.csv").open(newline="") as file:
            records = list(csv.DictReader(file))
        means = plain_means(records)
        assert [float(row[name]) for name in metrics] == pytest.approx(means, abs=1e-6)
        assert [row["rows"], row["cut_percent"]] == ["40", "0.0"]
        # The bootstrap once more, with other draws.
        exact = np.array([100.0 * (r["prediction"] == r["reference"]) for r in records])
        draws = exact[np.random.default_rng(1).integers(40, size=(4000, 40))].mean(axis=1)
        interval = [float(row[f"exact_match_{end}"]) for end in ("low", "high")]
        assert interval == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=2.6)
        low, high = (float(row[f"rougeL_{end}"]) for end in ("low", "high"))
        assert low < means[2] < high
        assert f"{means[2]:.1f}" in printed and f"{means[2]:.1f} ({low:.1f} to {high:.1f})" in markdown
        assert f"{means[2]:.1f} {low:.1f} to {high:.1f}" in text
        if row["condition"] == "gist":
            tokens = np.mean([int(r["instruction_tokens"]) for r in records])
            assert float(row["compression"]) == pytest.approx(tokens / int(row["k"]))
    by_name = {(row["split"], row["run"]): row for row in table}
    for (split, _), row in by_name.items():
        for metric in ("rougeL", "exact_match"):
            of = {c: float(by_name[split, f"{c}-1"][metric]) for c in ("pos_control", "neg_control")}
            gap = of["pos_control"] - of["neg_control"]
            recovery = 100 * (float(row[metric]) - of["neg_control"]) / gap
            if row["condition"] == "gist":
                assert float(row[f"recovery_{metric}"]) == pytest.approx(recovery)
                assert float(row[f"recovery_{metric}_low"]) < recovery
                assert f"{float(row['recovery_rougeL']):.1f} %" in markdown
            else:
                assert row[f"recovery_{metric}"] == ""
    header = "| condition | k | human | recovery, human | seen | recovery, seen |"
    assert markdown.splitlines()[0] == header and len(markdown.splitlines()) == 2 + 4


def test_page_holds_all_outputs(sweep, monkeypatch, capsys):
    """As data that no text in it can end, with everything that it needs."""
    *_, text = made(sweep, monkeypatch, capsys)
    page = Page(text)
    assert page.tags.count("script") == 2 and page.tags.count("picture") == 2
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    assert not re.search(r"(?:src|href)=\"(?!data:)", text) and "@import" not in text
    data = json.loads(re.search(r'id="outputs-data">(.*?)</script>', text, re.S)[1])
    assert data["runs"] == ["pos_control-1", "gist-1", "gist-2", "neg_control-1"]
    assert [data["left"], data["right"]] == [1, 0]
    assert [split["name"] for split in data["splits"]] == ["human", "seen"]
    for split in data["splits"]:
        for run, outputs, exact in zip(split["runs"], split["outputs"], split["exact"], strict=True):
            name = data["runs"][run]
            records = read_predictions(
                sweep / name / "predictions" / f"4-validation_{split['name']}.csv"
            )
            assert outputs == [record["prediction"] for record in records]
            assert exact == [r["prediction"].strip() == r["reference"].strip() for r in records]
            for field in ("instruction", "input", "reference"):
                assert split[field] == [record[field] for record in records]
        assert TEXT in split["instruction"][5]


def test_settings_that_set_runs_apart(sweep, monkeypatch, capsys):
    """They are named, and a run's controls are those that are most like it."""
    for name, condition, seed in (("g", "gist", 1), ("p", "pos_control", 1), ("q", "pos_control", 2)):
        make_run(sweep / name, condition, 1, 2, seed=seed)
    make_run(sweep / "plain", "pos_control", 0, 2)  # as like, but without gist tokens
    runs, _ = read_runs([sweep])
    by_name = {run.name: run for run in runs}
    assert settings_of(runs) == ["seed"] and by_name["g"].settings == {"seed": 1}
    assert control(by_name["g"], "pos_control", runs).name == "p"
    assert control(by_name["gist-2"], "pos_control", runs).name == "pos_control-1"
    assert control(by_name["g"], "neg_control", runs).name == "neg_control-1"
    printed, table, markdown, _ = made(sweep, monkeypatch, capsys)
    assert "| gist, seed=1 | 1 |" in markdown and "gist, seed=0" in printed
    assert {row["seed"] for row in table} == {"0", "1", "2"}


def test_a_run_with_several_numbers_of_gist_tokens(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "a" / "many", "gist", 5, 2, choices=(1, 5))
    _, table, markdown, _ = made(tmp_path / "a", monkeypatch, capsys)
    assert [(row["run"], row["k"]) for row in table[:2]] == [("many, k = 1", "1"), ("many, k = 5", "5")]
    assert float(table[0]["rougeL"]) < float(table[1]["rougeL"]) and "recovery_rougeL" not in table[0]
    assert markdown.count("| gist |") == 2


def test_the_suite_in_a_report(sweep, monkeypatch, capsys):
    """A file beside those of the evaluations is one more split; of the suite, losses are listed."""
    for name in ("gist-1", "pos_control-1"):
        records = [
            dict(zip(FIELDS, (x.instruction, x.input, x.output, x.output), strict=True))
            for x in suite.items()
        ]
        if name == "gist-1":
            for record in records:
                record["prediction"] = record["prediction"].replace("QX77-0193-LB", "a code")
        write(sweep / name / "predictions" / "suite.csv", records)
    printed, table, _, text = made(sweep, monkeypatch, capsys)
    assert [row["run"] for row in table if row["split"] == "suite"] == ["pos_control-1", "gist-1"]
    assert re.search("^suite +gist +1 ", printed, re.M)
    page = Page(text).text
    assert "Prompts unlike the training data: gist-1" in page and "QX77-0193-LB" in page
    assert "1 literals that it loses" in page


@pytest.mark.parametrize("dark", [False, True])
def test_figures_show_the_rows(sweep, dark):
    runs, _ = read_runs([sweep])
    compared = compare(runs)
    table = rows(compared)
    drawn = figures(compared, table, settings_of(runs), dark=dark)
    assert list(drawn) == ["quality", "compression"]
    for panel, split in zip(drawn["quality"].axes, SPLITS, strict=True):
        values = {row["run"]: row["rougeL"] for row in table if row["split"] == split}
        found = zip(*panel.get_legend_handles_labels(), strict=True)
        lines = {label: list(line.get_ydata()) for line, label in found}
        assert lines["gist"] == [values["gist-1"], values["gist-2"]]
        assert lines["pos_control"] == [values["pos_control-1"]] * 2
    panel = drawn["compression"].axes[0]
    found = zip(*panel.get_legend_handles_labels(), strict=True)
    lines = {label: (line.get_xdata(), line.get_ydata()) for line, label in found}
    human = {row["run"]: row for row in table if row["split"] == SPLITS[0]}
    for name in ("gist-1", "gist-2"):  # of groups of the same size
        assert np.mean(lines[name][0]) == pytest.approx(human[name]["compression"])
        lost = human[name]["rougeL"] - human["pos_control-1"]["rougeL"]
        assert np.mean(lines[name][1]) == pytest.approx(lost)


def test_mistakes_with_reports(sweep, tmp_path, monkeypatch, capsys):
    output = f"--output={tmp_path}/report"

    def said(*arguments):
        return mistake(report, monkeypatch, capsys, *map(str, arguments), output)

    (tmp_path / "empty").mkdir()
    assert "is no training workdir, and holds none" in said(tmp_path / "empty")
    fresh = make_run(tmp_path / "fresh", "gist", 1, 1)
    (fresh / "metrics.jsonl").unlink()
    assert said(fresh) == "error: fresh: no run has been evaluated yet"
    file = sweep / "gist-2" / "predictions" / "4-validation_seen.csv"
    write(file, read_predictions(file)[1:])
    assert "no partner for row 1 ('Do 0.') of pos_control-1, validation_seen" in said(sweep)
    assert not (tmp_path / "report").exists()
    (tmp_path / "report").write_text("")
    assert "is a file" in said(sweep)


def test_runs_that_are_not_evaluated_yet_are_named(sweep, monkeypatch, capsys):
    (sweep / "gist-2" / "metrics.jsonl").unlink()
    printed, table, *_ = made(sweep, monkeypatch, capsys)
    assert printed.startswith("not evaluated yet: gist-2\n") and len(table) == 6


@pytest.mark.slow
def test_sweep_and_report_by_command(tmp_path):
    """Runs of a few steps: one command for all, one for the report; both do little when called again."""
    environment = {**QUICKLY, "JAX_PLATFORMS": "cpu"}
    folder = tmp_path / "sweep"
    grid = ["--config=tests/helpers/quick.py", f"--output={folder}", "--num_gist_tokens=1,2"]
    commands = {
        "sweep": ["launch/sweep.py", *grid],
        "report": ["-m", "gist_jax.report", str(folder), f"--output={tmp_path}/report"],
    }
    printed = {}
    for name in ("sweep", "report", "sweep"):
        done = subprocess.run(
            [sys.executable, *commands[name]],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        printed.setdefault(name, []).append(done.stdout)
    assert printed["sweep"][0].count("gist_jax.train") == 4
    assert "gist_jax.train" not in printed["sweep"][1]
    lines = (tmp_path / "report" / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        *("pos_control", "gist", "gist", "neg_control")
    ]
    assert (tmp_path / "report" / "index.html").stat().st_size > 50_000
