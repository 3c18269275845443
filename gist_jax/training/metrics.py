"""Where the figures of a run go: JSON lines, TensorBoard, and wandb if asked for."""

import hashlib
import json
import pathlib
from typing import Any

import tensorboardX

from gist_jax.files import whole_file


class MetricsWriter:
    """Writes metrics by step. Opened again after a restart at `step`, it forgets what came later."""

    def __init__(self, workdir: pathlib.Path, step: int, config: dict[str, Any], use_wandb: bool):
        path = workdir / "metrics.jsonl"
        if path.exists():
            _keep_up_to(path, step)
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._wandb = None
        if use_wandb:
            import wandb  # optional: the run was prepared only if it is there

            self._wandb = wandb
            # The same run after a restart, another one in another workdir.
            run_id = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]
            self._wandb.init(
                dir=str(workdir), config=config, name=workdir.name, id=run_id, resume="allow"
            )

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(metrics, step=step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class NoMetrics:
    """What the processes besides the first write: nothing."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def _keep_up_to(path: pathlib.Path, step: int) -> None:
    """Drops the lines after `step`, and a last line that was cut by a kill."""
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
    with whole_file(path) as beside:
        beside.write_text("".join(kept))


def _whole_lines(path: pathlib.Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, float]]:
    """All lines of a run's metrics.jsonl but one that a kill cut."""
    return [json.loads(line) for line in _whole_lines(pathlib.Path(workdir) / "metrics.jsonl")]


def best_evaluation(workdir: str | pathlib.Path, metric: str) -> dict[str, float]:
    """The scores, "split/metric" in percent, of the evaluation with the highest `metric`; the last of
    several. Empty if there was none.
    """
    evaluated = [line for line in read_metrics(workdir) if metric in line]
    best = max(evaluated, key=lambda line: (line[metric], line["step"]), default={})
    return {name: value for name, value in best.items() if "/" in name}
