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


def check_split_decoding(topology: str, output: pathlib.Path) -> None:
    """Two layers of LLaMA-7B on eight devices that split heads: what one holds, and what it sends."""
    done = compile_ahead(
        *("--config=llama_7b", f"--topology={topology}", "--programs=decode", f"--output={output}"),
        *("--config.mesh.data=1", "--config.mesh.fsdp=1", "--config.mesh.tensor=8"),
        "--config.model.num_layers=2",
    )
    assert done.returncode == 0, done.stderr
    decode = reports_in(output)["decode"]
    rows, d, f, vocab = 64, 4096, 11008, 32001
    matrices = 2 * (4 * d * d + 3 * d * f) + 2 * d * (vocab + -vocab % 8)
    assert decode["parameters"] == 2 * (matrices // 8 + 5 * d)
    assert decode["cache"] == 2 * 2 * 2 * rows * d * (256 + 256) // 8
    needed = decode["parameters"] + decode["cache"]
    # All that is there, not arguments alone; the vocabulary of two layers is a third of everything.
    assert needed < decode["total"] < 1.2 * needed
    # The hidden states are summed after the embedding and after both parts of a layer; of every part of
    # the vocabulary the likeliest token and its logit are sent. No parameter is.
    sent = {"all-reduce": 5 * rows * d * 2 * 2 * 7 // 8, "all-gather": 2 * 7 * rows * 4}
    assert {kind: n for kind, n in decode["bytes_sent"].items() if n} == sent
