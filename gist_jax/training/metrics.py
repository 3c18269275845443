"""Where the metrics of a run go: JSON lines, TensorBoard, and wandb if asked for."""

import hashlib
import json
import pathlib
from typing import Any

from gist_jax.io import atomic_write
from gist_jax.workdir import METRICS, whole_lines


class MetricsWriter:
    """Writes metrics by step. Opened again after a restart at `step`, it forgets what came later."""

    def __init__(self, workdir: pathlib.Path, step: int, config: dict[str, Any], use_wandb: bool):
        path = workdir / METRICS
        if path.exists():
            _keep_up_to(path, step)
        import tensorboardX  # takes a second to import

        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._wandb: Any = None
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
    kept = [line for line in whole_lines(path) if json.loads(line)["step"] <= step]
    with atomic_write(path) as tmp:
        tmp.write_text("".join(kept))
