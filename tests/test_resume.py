"""A run killed at any moment goes on as if nothing had happened."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

STEPS = 60


def command(workdir: pathlib.Path) -> list[str]:
    config = pathlib.Path(__file__).with_name("quick.py")
    settings = {"num_steps": STEPS, "checkpoint.every": 7, "evaluation.every": 30}
    return [
        *(sys.executable, "-m", "gist_jax.train", f"--config={config}", f"--workdir={workdir}"),
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


def lines(workdir: pathlib.Path) -> list[str]:
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in lines(workdir)]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


@pytest.mark.slow
def test_sigkill_at_three_random_moments(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(command(undisturbed), check=True, capture_output=True)

    rng = random.Random()
    for _ in range(2):  # while it starts: nothing that is half written may count
        with subprocess.Popen(command(killed), stderr=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(1, 6))
            process.kill()
    for _ in range(3):
        # After some further steps, and then at any moment: in a step, a save or an evaluation.
        wanted = len(lines(killed)) + rng.randint(1, 12)
        with subprocess.Popen(command(killed), stderr=subprocess.PIPE, text=True) as process:
            while len(lines(killed)) < wanted and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
    subprocess.run(command(killed), check=True, capture_output=True)

    assert losses(killed) == losses(undisturbed)
    assert [step for step, _ in losses(killed)] == list(range(1, STEPS + 1))
    assert {p.name for p in (killed / "predictions").iterdir()} == {
        p.name for p in (undisturbed / "predictions").iterdir()
    }
