"""Where the metrics of a run go: JSON lines, TensorBoard, and wandb if asked for."""

import hashlib
import json
import pathlib
from typing import Any

from gist_jax.io import atomic_write
from gist_jax.storage import absolute, is_bucket
from gist_jax.workdir import METRICS, METRICS_FOLDER, metrics_objects, read_metrics, whole_lines


class MetricsWriter:
    """Writes metrics by step. Opened again after a restart at `step`, it forgets what came later.

    In a bucket there are no files of TensorBoard, which grow.
    """

    def __init__(self, workdir: pathlib.Path, step: int, config: dict[str, Any], use_wandb: bool):
        self._lines = _Objects(workdir, step) if is_bucket(workdir) else _File(workdir, step)
        self._board: Any = None
        if not is_bucket(workdir):
            import tensorboardX  # takes a second to import

            board = str(workdir / "tensorboard")
            self._board = tensorboardX.SummaryWriter(board, purge_step=step + 1)
        self._wandb: Any = None
        if use_wandb:
            import wandb  # optional: the run was prepared only if it is there

            self._wandb = wandb
            # The same run after a restart, another one in another workdir.
            run_id = hashlib.sha256(str(absolute(workdir)).encode()).hexdigest()[:16]
            folder = None if is_bucket(workdir) else str(workdir)  # None: where the command runs
            self._wandb.init(dir=folder, config=config, name=workdir.name, id=run_id, resume="allow")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._lines.write(step, json.dumps({"step": step, **metrics}) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(metrics, step=step)

    def close(self) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class NoMetrics:
    """What the processes besides the first write: nothing."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class _File:
    """The file of a workdir that lines are appended to."""

    def __init__(self, workdir: pathlib.Path, step: int):
        path = workdir / METRICS
        if path.exists():
            _keep_up_to(path, step)
        self._file = path.open("a")

    def write(self, step: int, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Objects:
    """The objects of a workdir in a bucket, one for every line: see `workdir.metrics_objects`."""

    def __init__(self, workdir: pathlib.Path, step: int):
        self._workdir, self._number = workdir, 0
        for file in metrics_objects(workdir):
            number, of_step = map(int, file.stem.split("-"))
            if of_step > step:
                file.unlink()
            else:
                self._number = number

    def write(self, step: int, line: str) -> None:
        self._number += 1
        (self._workdir / METRICS_FOLDER / f"{self._number:08}-{step}.json").write_text(line)

    def close(self) -> None:
        pass


def _keep_up_to(path: pathlib.Path, step: int) -> None:
    """Drops the lines after `step`, and a last line that was cut by a kill."""
    numbered = zip(whole_lines(path), read_metrics(path.parent), strict=True)
    kept = [line for line, metrics in numbered if metrics["step"] <= step]
    with atomic_write(path) as tmp:
        tmp.write_text("".join(kept))
