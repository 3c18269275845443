"""Runs of one or several processes on this machine."""

import os
import pathlib
import random
import re
import subprocess
import sys
import time

from gist_jax.workdir import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "helpers" / "quick.py"
# Compiled in half of the time, and once.
QUICKLY = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}


def make_environment() -> dict[str, str]:
    """The environment that the Makefile gives its commands."""
    makefile = (ROOT / "Makefile").read_text()
    return os.environ | dict(re.findall(r"^export (\w+) = (\w+)", makefile, re.M))


def run_demo(folder: pathlib.Path) -> str:
    """Runs the demo, which trains only what is not in the folder yet; what it printed."""
    demo = [sys.executable, "-m", "gist_jax.demo", f"--output={folder}"]
    settings = dict(env=make_environment(), check=True, stdout=subprocess.PIPE, text=True)
    return subprocess.run(demo, cwd=ROOT, **settings).stdout


def command(workdir: pathlib.Path, **settings) -> list[str]:
    """Trains `quick.py`.

    Args:
      settings: fields of the config, `__` in place of the dot.
    """
    return [
        *(sys.executable, "-m", "gist_jax.train", f"--config={CONFIG}", f"--workdir={workdir}"),
        *(f"--config.{name.replace('__', '.')}={value}" for name, value in settings.items()),
    ]


def start(workdir: pathlib.Path, processes: int, devices: int, **settings) -> subprocess.Popen:
    """Starts `command` in several processes, each with some simulated devices."""
    launcher = [sys.executable, str(ROOT / "launch" / "local.py")]
    counts = [f"--processes={processes}", f"--devices={devices}", "--"]
    return run([*launcher, *counts, *command(workdir, **settings)])


def run(command: list[str], **options) -> subprocess.Popen:
    """Starts a command, whose stderr can be read."""
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | QUICKLY, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for a run that must end with `code`; what it wrote to stderr."""
    written = process.communicate(timeout=300)[1]
    assert process.returncode == code, written
    return written


def printed_random() -> random.Random:
    """Random numbers from a seed that is printed, so that a failure can be repeated."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"the seed is {seed}")
    return random.Random(seed)


def children(process: subprocess.Popen) -> list[int]:
    """Process ids of what a launcher runs, the first process first."""
    listed = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listed.read_text().split()]


def lines(workdir: pathlib.Path) -> list[str]:
    """Of the log, whose last may be incomplete."""
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(process: subprocess.Popen, condition) -> None:
    """Returns when `condition()` is true, or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.01)


def wait_for_step(process: subprocess.Popen, workdir: pathlib.Path, step: int) -> None:
    """Returns when a step is in the log."""
    wait_for(process, lambda: any(line.startswith(f'{{"step": {step},') for line in lines(workdir)))


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """By step."""
    return {line["step"]: line["loss"] for line in read_metrics(workdir) if "loss" in line}
