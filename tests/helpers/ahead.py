"""Programs compiled ahead of time, in a process of their own."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def compile_ahead(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Runs launch/aot_compile.py."""
    command = [sys.executable, str(ROOT / "launch" / "aot_compile.py"), *arguments]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, **options)


def reports_in(path: pathlib.Path) -> dict[str, dict]:
    """What it wrote to --output, by program."""
    return {report["program"]: report for report in json.loads(path.read_text())}
