"""Trains every condition for several numbers of gist tokens, and compares the results.

python launch/sweep.py --config=quickstart --output=DIR --num_gist_tokens=1,2,5 \\
  --config.num_steps=1000

Each run has a workdir in DIR. The same command resumes where it was stopped, and leaves out what is
finished. python -m gist_jax.report DIR compares the runs with intervals, figures and all outputs.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from gist_jax.cli import add_config, exit_on_user_error, load_config, parse_with_config, parser
from gist_jax.errors import UserError
from gist_jax.evaluation.report import SHOWN, Row, as_text
from gist_jax.evaluation.rouge import recovery
from gist_jax.gist import CONDITIONS
from gist_jax.io import atomic_write, read_json, write_csv
from gist_jax.training.config import flat_config
from gist_jax.workdir import CHECKPOINTS, CONFIG, best_evaluation, read_metrics

OWN = ("condition", "num_gist_tokens", "seed")  # fields of the config that differ between runs
STOPPED = (143, -signal.SIGTERM)  # by SIGTERM, after a checkpoint or before the first

Metrics = dict[str, float]  # "split/metric" -> percent


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the sweep."""

    condition: str
    num_gist_tokens: int
    seed: int
    workdir: pathlib.Path
    settings: tuple[str, ...]  # arguments of train that make its config
    config: dict[str, Any] = dataclasses.field(compare=False)  # as its config.json has it

    @property
    def name(self) -> str:
        return self.workdir.name

    def command(self) -> list[str]:
        train = [sys.executable, "-m", "gist_jax.train"]
        return [*train, f"--workdir={self.workdir}", *self.settings]


def main() -> None:
    """Runs the command."""
    arguments = parser(__doc__)
    add_config(arguments, required=True, help="config of all runs")
    arguments.add_argument("--output", required=True, type=pathlib.Path, help="folder for the workdirs")
    arguments.add_argument(
        "--conditions", type=_conditions, default=",".join(CONDITIONS), help="which, with commas"
    )
    arguments.add_argument(
        "--num_gist_tokens",
        type=_numbers,
        default="1,2,5,10",
        help="of the gist runs; the controls are trained once, with 1, since one sees all of an "
        "instruction and the other nothing of it, whatever their number",
    )
    arguments.add_argument("--seeds", type=_numbers, default="0", help="all runs for each of them")
    instead = arguments.add_mutually_exclusive_group()
    instead.add_argument(
        "--slurm", action="store_true", help="only write DIR/commands.txt, for launch/slurm.sbatch"
    )
    instead.add_argument("--table", action="store_true", help="only compare the finished runs")
    instead.add_argument("--dry-run", action="store_true", help="only print what would be run")
    options, settings = parse_with_config(arguments)
    options.settings = settings
    with exit_on_user_error():
        runs = _grid(options)
        if options.slurm:
            _write_commands(options.output / "commands.txt", runs)
            return
        failed = [] if options.table else _train(runs, options.dry_run)
        if not options.dry_run:
            _compare(options.output / "results.csv", runs)
        if failed:
            raise UserError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def _conditions(text: str) -> tuple[str, ...]:
    conditions = tuple(dict.fromkeys(text.split(",")))
    for condition in conditions:
        if condition not in CONDITIONS:
            raise argparse.ArgumentTypeError(f"{condition!r} is not one of {', '.join(CONDITIONS)}")
    return conditions


def _numbers(text: str) -> tuple[int, ...]:
    for number in text.split(","):
        if not number.isdecimal():
            raise argparse.ArgumentTypeError(f"{number!r} is not a number")
    return tuple(dict.fromkeys(int(number) for number in text.split(",")))


def _grid(options: argparse.Namespace) -> list[Run]:
    for setting in options.settings:
        name = setting.partition("=")[0].removeprefix("--config.")
        if name in OWN or not setting.startswith("--config."):
            raise UserError(f"{setting} is not a setting for all runs: write --config.name=value")
    runs = []
    for seed in options.seeds:
        for condition in options.conditions:
            for tokens in options.num_gist_tokens if condition == "gist" else (1,):
                name = f"{condition}-{tokens}" + (f"-seed{seed}" if seed else "")
                own = zip(OWN, (condition, tokens, seed), strict=True)
                own_settings = [f"--config.{field}={value}" for field, value in own]
                settings = (*options.settings, *own_settings)
                config = load_config(options.config, settings).to_dict()
                config = json.loads(json.dumps(config))  # as in the file, where tuples are lists
                settings = (f"--config={options.config}", *settings)
                runs.append(Run(condition, tokens, seed, options.output / name, settings, config))
    return runs


def _train(runs: Sequence[Run], dry_run: bool) -> list[str]:
    """Trains one after the other what is not finished, and returns the names of those that failed."""
    failed = []
    for run in runs:
        if _metrics(run) is not None:
            continue
        print(shlex.join(run.command()), flush=True)
        if dry_run:
            continue
        code = run_to_end(run.command())
        if code in STOPPED:
            sys.exit(143)
        if code:
            failed.append(f"{run.name} (exit code {code})")
    return failed


def run_to_end(command: Sequence[str]) -> int:
    """The exit code of a command, to which SIGTERM is passed on, so that a run saves."""
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _write_commands(path: pathlib.Path, runs: Sequence[Run]) -> None:
    # Finished ones too, for which train has little to do: the numbers of the lines must not change
    # while jobs wait for theirs.
    with atomic_write(path) as tmp:
        tmp.write_text("".join(shlex.join(run.command()) + "\n" for run in runs))
    print(shlex.join(["sbatch", f"--array=0-{len(runs) - 1}", "launch/slurm.sbatch", str(path)]))


def _metrics(run: Run) -> Metrics | None:
    """The metrics of a run's best checkpoint, or None if it is not finished."""
    last, metric = run.config["num_steps"], run.config["checkpoint"]["metric"]
    # The last evaluation is written before the last checkpoint, and a run may be killed between them.
    if not (run.workdir / CHECKPOINTS / str(last)).is_dir():
        return None
    if flat_config(read_json(run.workdir / CONFIG)) != flat_config(run.config):
        return None  # train says what it makes of the other config
    if not any(metric in line and line["step"] == last for line in read_metrics(run.workdir)):
        return None
    return best_evaluation(run.workdir, metric)


def _compare(path: pathlib.Path, runs: Sequence[Run]) -> None:
    """Prints the table of all finished runs, and writes it."""
    finished = {run: found for run in runs if (found := _metrics(run)) is not None}
    if missing := [run.name for run in runs if run not in finished]:
        print(f"not finished: {', '.join(missing)}")
    if table := _rows(finished):
        write_csv(path, table)
        print(as_text(table))
        print(f"\nIn {path}.")


def _rows(finished: dict[Run, Metrics]) -> list[Row]:
    """Makes a row per split and metric, with how much of the controls' gap each gist run closes."""
    controls = {(run.condition, run.seed): found for run, found in finished.items()}
    table = []
    for name in next(iter(finished.values()), {}):
        split, metric = name.split("/")
        if metric not in SHOWN:
            continue
        row: Row = {"split": split, "metric": SHOWN[metric]}
        row |= {run.name: found[name] for run, found in finished.items()}
        for run, found in finished.items():
            pos, neg = (controls.get((c, run.seed)) for c in ("pos_control", "neg_control"))
            if run.condition == "gist" and pos is not None and neg is not None:
                row[f"recovery {run.name}"] = recovery(found[name], pos[name], neg[name])
        table.append(row)
    return table


if __name__ == "__main__":
    main()
