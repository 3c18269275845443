"""Streams batches of an array_record file from disk, and says how fast, and in how much memory.

python tests/helpers/stream_batches.py --examples=10_000_000 --workers=2 --folder=/tmp/stream

The file is made first if it is not there. The run then stops in the middle, and another process resumes
it there.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import psutil
from tqdm import tqdm

from gist_jax.data.batching import training_batches
from gist_jax.data.prompt_template import PromptTemplate
from gist_jax.data.record_files import write_array_record
from gist_jax.data.sources import load_data
from gist_jax.data.tokenization import train_bpe

BATCH = 64


def megabytes() -> float:
    """What this process and its children have in memory that is their own."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(process.memory_full_info().uss for process in processes) / 1e6


def example(i: int) -> dict[str, str]:
    """One of as many as are asked for."""
    words = f"{i:08d}".replace("", " ").strip()
    return {"instruction": f"Say number {i % 9973} backwards.", "input": words, "output": words[::-1]}


def main() -> None:
    """Runs the script."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--examples", type=int, default=100_000)
    arguments.add_argument("--workers", type=int, default=0)
    arguments.add_argument("--folder", type=pathlib.Path, required=True)
    arguments.add_argument("--resume", action="store_true", help="from the middle, in this process")
    options = arguments.parse_args()
    file = options.folder / f"train-{options.examples}.array_record"
    if not file.exists():
        write_array_record(file, tqdm(map(example, range(options.examples)), total=options.examples))
    began = time.perf_counter()
    examples = load_data(f"arrayrecord:{file}").splits["train"]
    template = PromptTemplate(train_bpe(["Instruction: Say number Input: Output: 0 1 2"], 290), 1)
    sizes = dict(batch_size=BATCH, max_length=64, max_output_length=64, pack=False, seed=0)
    batches = training_batches(examples, template, **sizes, workers=options.workers)
    state, steps = options.folder / "state.json", options.examples // BATCH
    if options.resume:
        batches.set_state(json.loads(state.read_text()))
    next(batches)
    found = {"seconds until the first batch": time.perf_counter() - began, "megabytes then": megabytes()}
    marks = {steps // 10: "a tenth", steps // 2: "half", steps - 2: "all"}
    began = time.perf_counter()
    for step in range(1, steps // 20 if options.resume else steps - 1):
        next(batches)
        if step in marks:
            found[f"megabytes after {marks[step]}"] = megabytes()
            if marks[step] == "half":
                state.write_text(json.dumps(batches.get_state()))
    found["examples a second"] = step * BATCH / (time.perf_counter() - began)
    if options.resume:
        found["megabytes after resuming"] = megabytes()
        print(json.dumps(found))
        return
    resumed = subprocess.run([sys.executable, *sys.argv, "--resume"], check=True, capture_output=True)
    print(json.dumps({"straight": found, "resumed": json.loads(resumed.stdout)}, indent=2))


if __name__ == "__main__":
    main()
