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
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    with whole_file(path) as beside:
        beside.write_text("".join(kept))


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, float]]:
    """All lines of a run's metrics.jsonl."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
