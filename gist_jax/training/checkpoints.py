"""Orbax checkpoints of a run: asynchronous, sharded; the best and the last two are kept."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from gist_jax.errors import UserError, shortened
from gist_jax.storage import absolute
from gist_jax.training import distributed
from gist_jax.training.step import TrainState
from gist_jax.workdir import best_step


@dataclasses.dataclass(frozen=True)
class _BestAndLastTwo(ocp.training.preservation_policies.PreservationPolicy):
    """Keeps the best checkpoint by a metric, and the last two: the last might get damaged."""

    metric: str

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = best_step({c.step: c.metrics for c in checkpoints}, self.metric)
        last = [c.step for c in checkpoints[-2:]]
        return [c.step in (best, *last) for c in checkpoints]


class Restored(NamedTuple):
    """What a checkpoint holds."""

    state: TrainState
    data: Any  # JSON-able state of the input pipeline
    unevaluated: bool  # whether its evaluation was due, but cut off


class Checkpoints:
    """The checkpoints of one workdir. A context manager: leaving it waits for what is being saved.

    Orbax writes elsewhere and renames, so a killed save leaves the checkpoints before it untouched. In
    a bucket it writes in place, and at last an object that says so; without that there is no checkpoint.
    """

    def __init__(self, directory: pathlib.Path, metric: str):
        self._directory, self._metric = absolute(directory), metric
        self._orbax = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        if distributed.is_first():
            self._drop_damaged_metrics()
        distributed.wait_for_all("opened")
        return ocp.training.Checkpointer(
            self._directory,
            # The loop decides when: every call saves.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_BestAndLastTwo(self._metric),
            cleanup_tmp_directories=True,
        )

    def _drop_damaged_metrics(self) -> None:
        """Drops metrics that cannot be read: Orbax reads those of all checkpoints when it begins."""
        for file in self._directory.glob("[0-9]*/metrics/metrics"):
            try:
                json.loads(file.read_text(encoding="utf-8"))
            except ValueError as problem:
                logging.error("THE METRICS OF A CHECKPOINT CANNOT BE READ and are dropped: %s", problem)
                file.unlink()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with self._save_errors():
            self._orbax.close()

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Raises a UserError for a save that has failed, at once or in the background."""
        try:
            yield
        except Exception as error:  # of many kinds, of Orbax and of TensorStore below it
            reason = " ".join(str(error).split())[-200:]  # the system's own words come last
            raise UserError(
                f"cannot save a checkpoint in {self._directory} (those before are kept): {reason}"
            ) from error

    def save(
        self,
        state: TrainState,
        data: Any,
        metrics: dict[str, float] | None = None,
        *,
        unevaluated: bool = False,
        again: bool = False,
    ) -> None:
        """Starts saving in the background; returns once the arrays may change again.

        Args:
          data: JSON-able state of the input pipeline.
          metrics: of an evaluation of this very state, if there was one.
          unevaluated: whether there should have been one.
          again: in place of what was saved of that step.

        Raises:
          UserError: if this save or the one before it failed, for example because the disk is full.
        """
        # Two items, so that inference reads the parameters alone.
        parts = {
            "params": state.params,
            "optimizer": {"state": state.opt_state, "step": state.step},
        }
        with self._save_errors():
            self._orbax.save_checkpointables_async(
                int(state.step),
                parts,
                overwrite=again,
                metrics=metrics,
                custom_metadata={"data": data, "unevaluated": unevaluated},
            )

    def restore(self, like: TrainState) -> Restored | None:
        """The last checkpoint that can be read, or None if nothing was saved.

        Checkpoints after it, which cannot be read, are moved out of the way with a warning.

        Args:
          like: a state of ShapeDtypeStructs with shardings.

        Raises:
          UserError: if there are checkpoints but none can be read.
        """
        steps = [checkpoint.step for checkpoint in self._orbax.checkpoints]
        unreadable: dict[int, str] = {}
        for step in reversed(steps):
            found, problem = None, "another process cannot read its part"
            try:
                found = self._load(step, like)
            except Exception as error:  # of many kinds, for damaged files
                problem = shortened(error)
            if distributed.all_true(found is not None):
                # Only now: what keeps all of them from being read is no damage.
                self._put_aside(unreadable)
                return found
            unreadable[step] = problem
        if unreadable:
            reason = next(iter(unreadable.values()))
            raise UserError(f"no checkpoint in {self._directory} can be read: {reason}")
        return None

    def _load(self, step: int, like: TrainState) -> Restored:
        """Every process alone: one that fails must not leave the others waiting for it."""
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        path = self._directory / str(step)
        with ocp.Context(multiprocessing_options=alone):
            saved = ocp.checkpointables_metadata(path).custom_metadata
            optimizer = {"state": like.opt_state, "step": like.step}
            loaded = ocp.load_checkpointables(path, {"params": like.params, "optimizer": optimizer})
        state = TrainState(loaded["optimizer"]["step"], loaded["params"], loaded["optimizer"]["state"])
        # Runs before evaluations could be cut off say nothing of it.
        return Restored(jax.block_until_ready(state), saved["data"], saved.get("unevaluated", False))

    def _put_aside(self, unreadable: dict[int, str]) -> None:
        """Moves damaged checkpoints out of the directory, so that their steps can be saved again.

        Args:
          unreadable: what is wrong, by step.
        """
        for step, problem in unreadable.items():
            aside = self._directory.parent / f"damaged-{step}"
            if distributed.is_first():
                while aside.exists():
                    aside = aside.with_name(aside.name + "x")
                (self._directory / str(step)).rename(aside)  # in a bucket: copied, and removed
            logging.error(
                "CHECKPOINT %d CANNOT BE READ and is now %s; resuming from one before it. %s",
                step,
                aside,
                problem,
            )
        if unreadable:
            distributed.wait_for_all("put aside")
            self._orbax.close()
            self._orbax = self._open()
