"""The demo shows what it promises: results of its own run, and the effect of gisting in them."""

import csv
import re
import resource
import subprocess
import sys

import pytest
from processes import ROOT, make_environment, run_demo

from gist_jax.workdir import read_metrics


@pytest.mark.slow
def test_demo(demo):
    folder, printed = demo
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    rouge = {row["split"]: row for row in table if row["metric"] == "ROUGE-L"}
    for split, recovery in (("validation_seen", 95), ("validation_unseen", 80)):
        gist, pos, neg = (float(rouge[split][c]) for c in ("gist", "pos_control", "neg_control"))
        assert pos - neg >= 30
        assert 100 * (gist - neg) / (pos - neg) >= recovery
        assert float(rouge[split]["recovery"]) == pytest.approx(100 * (gist - neg) / (pos - neg))
        assert f"{gist:.1f}" in printed
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    cached, prompted = (re.findall(rf"^from the {x} +(.*)$", printed, re.M) for x in ("cache", "prompt"))
    assert len(cached) == 3 and cached == prompted
    # Kilobytes, the most of any child of this process.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 6e6
    shown, again = (text[text.index("split ") :] for text in (printed, run_demo(folder)))
    results, _, saved = shown.partition("What it saves")
    assert "gist cache" in saved
    assert again.partition("What it saves")[0] == results  # nothing is trained again


@pytest.mark.slow
def test_quickstart_of_t5(tmp_path):
    """Gisting alone, with half the steps, for want of time; neg_control does not get beyond 20 %."""
    command = [sys.executable, "-m", "gist_jax.train", "--config=quickstart_t5"]
    command += [f"--workdir={tmp_path}", "--config.num_steps=1000"]
    subprocess.run(command, cwd=ROOT, env=make_environment(), check=True, capture_output=True)
    metrics = read_metrics(tmp_path)[-1]
    assert metrics["validation_seen/rougeL"] >= 50
    assert metrics["validation_unseen/rougeL"] >= 45
