"""The demo shows what it promises: figures of its own run, and the effect of gisting in them."""

import csv
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest

from gist_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """That of make."""
    makefile = (ROOT / "Makefile").read_text()
    return os.environ | dict(re.findall(r"^export (\w+) = (\w+)", makefile, re.M))


@pytest.mark.slow
def test_demo(tmp_path):
    command = [sys.executable, "-m", "gist_jax.demo", f"--output={tmp_path}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), check=True, capture_output=True, text=True
    )
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    rouge = {row["split"]: row for row in table if row["metric"] == "ROUGE-L"}
    for split, recovery in (("validation_seen", 95), ("validation_unseen", 80)):
        gist, pos, neg = (float(rouge[split][c]) for c in ("gist", "pos_control", "neg_control"))
        assert pos - neg >= 30
        assert 100 * (gist - neg) / (pos - neg) >= recovery
        assert float(rouge[split]["recovery"]) == pytest.approx(100 * (gist - neg) / (pos - neg))
        assert f"{gist:.1f}" in done.stdout
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    cached, prompted = (
        re.findall(rf"^from the {x} +(.*)$", done.stdout, re.M) for x in ("cache", "prompt")
    )
    assert len(cached) == 3 and cached == prompted
    # Kilobytes, the most of any child of this process.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 6e6
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    shown, _, saved = done.stdout.partition("What it saves")
    assert "gist cache" in saved
    assert again.partition("What it saves")[0] == shown  # nothing is trained again


@pytest.mark.slow
def test_quickstart_of_t5(tmp_path):
    """Gisting alone, with half the steps, for want of time; neg_control does not get beyond 20 %."""
    command = [sys.executable, "-m", "gist_jax.train", "--config=configs/quickstart_t5.py"]
    command += [f"--workdir={tmp_path}", "--config.num_steps=1000"]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)
    scores = read_metrics(tmp_path)[-1]
    assert scores["validation_seen/rougeL"] >= 50
    assert scores["validation_unseen/rougeL"] >= 45
