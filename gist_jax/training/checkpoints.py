"""Orbax checkpoints of a run: asynchronous, the best and the last are kept."""

import pathlib
from typing import Any

from orbax.checkpoint import v1 as ocp

from gist_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of one workdir. A context manager: leaving it waits for what is being saved.

    Orbax writes beside and renames, so a killed save leaves the checkpoints before it untouched.
    """

    def __init__(self, directory: pathlib.Path, metric: str):
        policies = ocp.training.preservation_policies

        def by_metric(metrics: dict[str, float]) -> float:
            return metrics.get(metric, float("-inf"))

        # BestN sorts ascending and keeps the end of the list: the highest.
        best = policies.BestN(get_metric_fn=by_metric, n=1, keep_checkpoints_without_metrics=False)
        self._orbax = ocp.training.Checkpointer(
            directory.resolve(),
            # The loop decides when: every call saves.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._orbax.close()

    def save(self, state: TrainState, data: Any, metrics: dict[str, float] | None) -> None:
        """Starts saving in the background; returns once the arrays may change again.

        Args:
          data: JSON-able state of the input pipeline.
          metrics: of an evaluation of this very state, if there was one.
        """
        self._orbax.save_checkpointables_async(
            int(state.step),
            # Apart, so that inference reads the parameters alone.
            {"params": state.params, "optimizer": {"state": state.optimizer, "step": state.step}},
            metrics=metrics,
            custom_metadata={"data": data},
        )

    def restore(self, like: TrainState) -> tuple[TrainState, Any] | None:
        """The last state and its `data`, or None if nothing was saved.

        Args:
          like: a state of ShapeDtypeStructs with shardings.
        """
        latest = self._orbax.latest
        if latest is None:
            return None
        optimizer = {"state": like.optimizer, "step": like.step}
        loaded = self._orbax.load_checkpointables(
            latest.step, {"params": like.params, "optimizer": optimizer}
        )
        data = self._orbax.checkpointables_metadata(latest.step).custom_metadata["data"]
        state = TrainState(loaded["optimizer"]["step"], loaded["params"], loaded["optimizer"]["state"])
        return state, data
