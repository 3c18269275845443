"""A sweep runs what is not finished, and compares what is."""

import csv
import json
import pathlib
import re
import shlex
import shutil
import signal
import sys

import pytest
import quick
from commands import mistake
from launch_scripts import (
    BASH,
    ENVIRONMENT,
    ROOT,
    bash,
    executables,
    script,
    signal_this_process,
)

# Of ml_collections, for every config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

sweep = script("sweep")

QUICK = f"--config={ROOT / 'tests' / 'helpers' / 'quick.py'}"
METRICS = {
    "gist-1": {"seen": 40.0, "unseen": 30.0},
    "gist-2": {"seen": 60.0, "unseen": 20.0},
    "pos_control-1": {"seen": 70.0, "unseen": 50.0},
    "neg_control-1": {"seen": 20.0, "unseen": 10.0},
}


def finished(workdir: pathlib.Path, **settings) -> pathlib.Path:
    """What train leaves of a finished run, as far as a sweep looks at it."""
    config = quick.get_config()
    condition, tokens = workdir.name.split("-")
    config.update(condition=condition, num_gist_tokens=int(tokens), **settings)
    (workdir / "checkpoints" / "8").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    best = {f"validation_{split}/rougeL": value for split, value in METRICS[workdir.name].items()}
    others = {"validation_seen/exact_match": 1.0, "validation_seen/rouge1": 2.0}
    worse = {name: value - 5 for name, value in best.items()}
    records = [{"step": 4, **best, **others}, {"step": 6, "loss": 1.0}, {"step": 8, **worse, **others}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return workdir


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Instead of train: copies a finished run into the workdir, or fails; which were started."""
    log = tmp_path / "started"
    for name in METRICS:
        finished(tmp_path / "trained" / name)
    # The first argument that is a workdir, and the last part of it.
    fake = f"""#!{BASH}
for word; do case $word in --workdir=*) workdir=${{word#--workdir=}} ;; esac; done
name=${{workdir##*/}}
echo $name >> {log}
[ -e {tmp_path}/trained/$name ] || exit 3
mkdir -p $workdir && cp -r {tmp_path}/trained/$name/. $workdir
"""
    executables(tmp_path / "bin", python=fake)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    return lambda: log.read_text().split() if log.exists() else []


def grid(folder: pathlib.Path) -> list[str]:
    return [QUICK, f"--output={folder / 'sweep'}", "--num_gist_tokens=1,2"]


def test_sweep_dry_run(run_script, tmp_path, train):
    settings = ["--", "--config.num_steps=9"]
    code, out, _ = run_script(sweep, *grid(tmp_path), "--seeds=0,3", "--dry-run", *settings)
    assert code == 0 and not train() and not (tmp_path / "sweep").exists()
    commands = [shlex.split(line) for line in out.splitlines()]
    names = [*METRICS, *(f"{name}-seed3" for name in METRICS)]
    assert [c[3] for c in commands] == [f"--workdir={tmp_path / 'sweep' / n}" for n in names]
    own = [f"--config.{f}" for f in ("condition=gist", "num_gist_tokens=2", "seed=3")]
    python, expected = str(tmp_path / "bin" / "python"), [QUICK, "--config.num_steps=9", *own]
    assert commands[5][:3] == [python, "-m", "gist_jax.train"] and commands[5][4:] == expected


def test_sweep_resumes_and_reports(run_script, tmp_path, train):
    shutil.move(tmp_path / "trained" / "gist-2", tmp_path / "broken")
    code, out, _ = run_script(sweep, *grid(tmp_path))
    assert code == "error: 1 of 4 runs failed: gist-2 (exit code 3)"
    assert train() == list(METRICS)  # the others still ran
    assert "not finished: gist-2\n" in out and "recovery gist-1" in out
    shutil.move(tmp_path / "broken", tmp_path / "trained" / "gist-2")
    code, out, _ = run_script(sweep, *grid(tmp_path))
    assert code == 0 and train() == [*METRICS, "gist-2"]  # and are not run again
    code, again, _ = run_script(sweep, *grid(tmp_path), "--table")
    assert code == 0 and len(train()) == 5 and again in out


def test_sweep_table(run_script, tmp_path, train):
    _, out, _ = run_script(sweep, *grid(tmp_path))
    with (tmp_path / "sweep" / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    columns = ["split", "metric", *METRICS, "recovery gist-1", "recovery gist-2"]
    assert list(table[0]) == columns
    expected = {
        ("validation_seen", "ROUGE-L"): [40, 60, 70, 20, 40, 80],
        ("validation_unseen", "ROUGE-L"): [30, 20, 50, 10, 50, 25],
        ("validation_seen", "exact match"): [1, 1, 1, 1],
    }
    assert [tuple(row.values())[:2] for row in table] == list(expected)
    for row, values in zip(table, expected.values(), strict=True):
        assert [float(x) for x in list(row.values())[2:]][: len(values)] == values
    printed = [re.split("  +", line.strip()) for line in out.splitlines()]
    assert columns in printed
    assert ["validation_seen", "ROUGE-L", "40.0", "60.0", "70.0", "20.0", "40.0 %", "80.0 %"] in printed


@pytest.mark.parametrize("lacks", ["checkpoint", "evaluation", "config"])
def test_what_is_not_finished(run_script, tmp_path, train, lacks):
    settings = {"optimizer": {"learning_rate": 0.5}} if lacks == "config" else {}
    workdir = finished(tmp_path / "sweep" / "gist-1", **settings)
    if lacks == "checkpoint":  # killed after the last evaluation
        (workdir / "checkpoints" / "8").rename(workdir / "checkpoints" / "6")
    if lacks == "evaluation":
        lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        (workdir / "metrics.jsonl").write_text("".join(lines[:-1]))
    run_script(sweep, *grid(tmp_path), "--conditions=gist")
    assert train() == ["gist-1", "gist-2"]


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_a_real_run_is_finished(run_script, tmp_path, train, workdir):
    shutil.copytree(workdir, tmp_path / "sweep" / "gist-1")
    _, out, _ = run_script(
        sweep, QUICK, f"--output={tmp_path / 'sweep'}", "--conditions=gist", "--table"
    )
    assert "validation_human   ROUGE-L" in out and "not finished: gist-2" in out


def test_a_stopped_sweep_lets_its_run_save(run_script, tmp_path, train):
    save = f"#!{BASH}\ntrap 'sleep 0.3; touch {tmp_path}/saved; exit 143' TERM\ntouch {tmp_path}/ready\n"
    executables(tmp_path / "bin", python=save + "for i in {1..100}; do sleep 0.05; done\n")
    signal_this_process(signal.SIGTERM, (tmp_path / "ready").exists)
    code, out, _ = run_script(sweep, *grid(tmp_path))
    assert code == 143 and (tmp_path / "saved").exists()
    assert out.count("gist_jax.train") == 1  # no other run was started


def test_sweep_by_slurm(run_script, tmp_path, train):
    code, out, _ = run_script(sweep, *grid(tmp_path), "--slurm")
    commands = tmp_path / "sweep" / "commands.txt"
    assert code == 0 and not train()
    assert out == f"sbatch --array=0-3 launch/slurm.sbatch {commands}\n"
    environment = ENVIRONMENT | {"SLURM_ARRAY_TASK_ID": "1"}
    done = bash("slurm.sbatch", "--dry-run", str(commands), env=environment)
    step = shlex.split(done.stdout)
    assert step[0] == "srun" and step[3:] == shlex.split(commands.read_text().splitlines()[1])


def test_mistakes_with_sweep(tmp_path, monkeypatch, capsys):
    def said(*arguments):
        return mistake(sweep, monkeypatch, capsys, QUICK, f"--output={tmp_path / 'x'}", *arguments)

    assert "'x' is not one of gist" in said("--conditions=gist,x")
    assert "'-1' is not a number" in said("--num_gist_tokens=-1")
    assert "unknown config field nope" in said("--", "--config.nope=1")
    assert "--config.seed=1 is not a setting for all runs" in said("--", "--config.seed=1")
    assert "invalid literal" in said("--", "--config.num_steps=x")
    assert "nope.py" in mistake(sweep, monkeypatch, capsys, "--config=nope.py", f"--output={tmp_path}")
    assert not list(tmp_path.iterdir())
