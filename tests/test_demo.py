"""The demo shows what it promises: figures of its own run, and the effect of gisting in them."""

import csv
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seen", "unseen"), [("quickstart", 95, 80), ("quickstart_t5", 90, 70)])
def test_demo(name, seen, unseen, tmp_path):
    makefile = (ROOT / "Makefile").read_text()
    settings = dict(re.findall(r"^export (\w+) = (\w+)", makefile, re.M))
    demo = [sys.executable, "-m", "gist_jax.demo"]
    command = [*demo, f"--config=configs/{name}.py", f"--output={tmp_path}"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, check=True, capture_output=True, text=True
    )
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    rouge = {row["split"]: row for row in table if row["metric"] == "ROUGE-L"}
    for split, recovery in (("validation_seen", seen), ("validation_unseen", unseen)):
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
    assert again.split("prefill")[0] == done.stdout.split("prefill")[0]  # nothing is trained again
