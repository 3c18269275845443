"""launch/miniature.py: which tasks it chooses, and that a killed script ends with the same table."""

import json
import lzma
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from launch_scripts import ROOT, script
from processes import QUICKLY

from gist_jax.workdir import read_metrics

miniature_data = script("miniature_data")
NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn")


def record(task, text, output):
    return {"task": task, "instruction": f"{task}.", "input": text, "output": output, "source": "s"}


def superni():
    """Two tasks that share their inputs, and some that must not be chosen."""
    train = []
    for i in range(60):
        text = f"{NAMES[i % 6]} gave number {i} to {NAMES[(i + 1) % 6]} today."
        train.append(record("first name", text, NAMES[i % 6]))
        train.append(record("last name", text, NAMES[(i + 1) % 6]))
        train.append(record("count", text, str(i)))  # a number
        train.append(record("alone", f"{i} other words stand in this one.", "words"))  # not shared
        train.append(record("shout", f"word {i}", f"WORD {i}"))  # short, as the next one
        train.append(record("whisper", f"Word {i}", f"word {i}"))
        train.append(record("essay", text, "so " * 400))  # too long
    seen = [record("first name", "Gil gave number 99 to Hal today.", "Gil")]
    unseen = [record("middle", f"{name} gave number 3 to Gil today.", "gave") for name in NAMES]
    return {"train": train, "validation_seen": seen, "validation_unseen": unseen}


def test_the_tasks_that_are_chosen():
    chosen = miniature_data.chosen_tasks(superni())
    train, seen, unseen = (chosen[name] for name in miniature_data.SPLITS)
    assert {r["task"] for r in train} == {r["task"] for r in seen} == {"first name", "last name"}
    inputs = [{r["input"] for r in split} for split in (train, seen)]
    assert not inputs[0] & inputs[1] and len(train) + len(seen) == 121
    assert 10 < len(seen) < 50 and len(unseen) == 6
    assert chosen == miniature_data.chosen_tasks(superni())  # in the same order
    assert [r["task"] for r in train] != sorted(r["task"] for r in train)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("books", "superni", "alpaca"):
        (folder / name).mkdir()
    with lzma.open(folder / "books" / "books.jsonl.xz", "wt") as file:
        for i in range(40):
            file.write(
                json.dumps({"title": "t", "text": f"Chapter {i}. {NAMES[i % 6]} left. " * 20}) + "\n"
            )
    for name, records in superni().items():
        (folder / "superni" / f"{name}.json").write_text(json.dumps(records))
    alpaca = [{"instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in range(50)]
    (folder / "alpaca" / "alpaca_data.json").write_text(json.dumps(alpaca))
    return folder


def start(data, output, home):
    command = [sys.executable, str(ROOT / "launch" / "miniature.py"), "--size=tiny"]
    output.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*command, f"--data={data}", "--output=out"],
        cwd=output,  # so that reports name the same paths
        env=os.environ | QUICKLY | {"XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_script_ends_with_the_same_table(data, tmp_path):
    process = start(data, tmp_path / "whole", tmp_path / "home")
    printed, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    assert "results.md" in printed
    results = (tmp_path / "whole" / "out" / "results.md").read_text()
    print(results)
    for name in ("base", "1-gram", "3-gram", "pos_control", "gist", "neg_control", "Side by side"):
        assert name in results
    rng = random.Random(3)
    output = tmp_path / "killed"
    for kill in range(4):
        process = start(data, output, tmp_path / "home")
        time.sleep(rng.uniform(1, 12))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM if kill % 2 else signal.SIGKILL)
        process.communicate()
    process = start(data, output, tmp_path / "home")
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    assert (output / "out" / "results.md").read_text() == results
    for name in ("results.csv", "table.md"):
        ours, theirs = (tmp_path / run / "out" / "report" / name for run in ("killed", "whole"))
        assert ours.read_text() == theirs.read_text()
    runs = sorted(path.parent.relative_to(output) for path in output.glob("out/**/metrics.jsonl"))
    assert len(runs) == 10
    for run in runs:
        losses = [
            {line["step"]: line["loss"] for line in read_metrics(folder / run) if "loss" in line}
            for folder in (output, tmp_path / "whole")
        ]
        assert losses[0] == losses[1], run
    # Another size is another folder.
    command = [sys.executable, str(ROOT / "launch" / "miniature.py"), f"--data={data}"]
    failed = subprocess.run([*command, f"--output={output / 'out'}"], capture_output=True, text=True)
    assert failed.returncode == 1 and "--size=tiny: choose another folder" in failed.stderr
