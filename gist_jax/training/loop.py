"""The training loop."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import jax
from tqdm import tqdm

from gist_jax.data.batching import training_batches
from gist_jax.errors import Stopped, UserError
from gist_jax.models.stack import Params
from gist_jax.sharding import local_rows, place_rows
from gist_jax.training.checkpoints import Checkpoints
from gist_jax.training.config import gist_token_counts
from gist_jax.training.distributed import Preempted, Preemption, is_first
from gist_jax.training.losses import ALL
from gist_jax.training.metrics import MetricsWriter, NoMetrics
from gist_jax.training.optimizer import make_schedule
from gist_jax.training.run import Run
from gist_jax.training.step import SEGMENTS, TrainState
from gist_jax.workdir import CHECKPOINTS

# Trained parameters, their step, and what is called between batches and raises to cut the evaluation off
# -> metrics by name, such as "validation_seen/rougeL".
Evaluate = Callable[[Params, int, Callable[[], None]], dict[str, float]]


class Diverged(UserError):
    """The loss or its gradient is not a finite number."""


def train(run: Run, evaluate: Evaluate | None = None) -> TrainState:
    """Trains to the end, from the last checkpoint in the workdir if there is one.

    A signal saves at once: it cuts an evaluation off, which the resumed run then begins with.

    Args:
      evaluate: called every `config.evaluation.every` steps and after the last.

    Returns:
      The state after the last step.

    Raises:
      Stopped: after SIGTERM; all was saved.
      Diverged: naming the step. The last checkpoint is from before it.
    """
    config, program = run.config, run.program
    rows = local_rows(program.batch_sharding, config.data.batch_size)
    batches = training_batches(
        run.examples,
        run.template,
        batch_size=config.data.batch_size,
        max_length=config.data.max_length,
        max_output_length=config.data.max_output_length,
        pack=config.data.pack,
        gist_token_choices=gist_token_counts(config),
        predicts_prompt=config.loss.tokens == ALL,
        buckets=config.data.buckets,
        workers=config.data.workers,
        seed=config.seed,
        rows=rows,
    )
    with (
        jax.set_mesh(program.mesh),
        Preemption() as preempted,
        Checkpoints(run.workdir / CHECKPOINTS, config.checkpoint.metric) as checkpoints,
    ):
        restored = checkpoints.restore(program.state)
        if restored is None:
            state = program.create(run.init())
        else:
            state = restored.state
            batches.set_state(restored.data)
        start = int(state.step)
        writer: MetricsWriter | NoMetrics
        if is_first():
            writer = MetricsWriter(run.workdir, start, config.to_dict(), config.log.wandb)
        else:
            writer = NoMetrics()
        report = _Report(writer, make_schedule(config), config.log.every, start, config.num_steps)
        with contextlib.closing(writer), contextlib.closing(report):

            def evaluated(step: int) -> dict[str, float] | None:
                """Evaluates the state and logs the metrics; None if it was cut off."""
                assert evaluate is not None
                try:
                    metrics = evaluate(state.params, step, preempted.check)
                except Preempted:
                    return None
                if metrics:
                    writer.write(step, metrics)
                return metrics

            if restored is not None and restored.unevaluated and evaluate is not None:
                found = evaluated(start)
                if found is None:
                    raise _stopped(start)
                checkpoints.save(state, restored.data, found, again=True)
                report.restart_clock()
            pending = None  # metrics of the step before, read while the device works on the next
            slots = 0
            for step in range(start + 1, config.num_steps + 1):
                batch = place_rows(next(batches), program.batch_sharding, config.data.batch_size)
                state, metrics = program.step(state, batch, run.frozen)
                if pending is not None:
                    report(step - 1, pending, slots)
                pending = metrics
                slots = sum(batch[name].size for name in SEGMENTS if name in batch)
                stops = preempted()
                evaluates = evaluate is not None and _due(
                    step, config.evaluation.every, config.num_steps
                )
                if stops or evaluates or _due(step, config.checkpoint.every, config.num_steps):
                    report(step, metrics, slots)
                    pending = None
                    # The loss above is of before the update; what is saved must be sound after it.
                    loss = program.loss_of_microbatch(state.params, batch, run.frozen)
                    _check_finite(step, float(loss))
                    found = evaluated(step) if evaluates and not stops else None
                    cut_off = evaluates and found is None
                    checkpoints.save(state, batches.get_state(), found, unevaluated=cut_off)
                    report.restart_clock()
                    if cut_off or stops and step < config.num_steps:
                        raise _stopped(step)
    return state


def _stopped(step: int) -> Stopped:
    return Stopped(f"stopped at step {step}: the same command resumes there")


def _check_finite(step: int, loss: float, grad_norm: float = 0.0) -> None:
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        raise Diverged(
            f"the loss is {loss} and its gradient's norm {grad_norm} at step {step}: training stopped; "
            "the last good checkpoint is kept (try a lower learning rate)"
        )


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


class _Report:
    """Reads the metrics of finished steps: progress bar, log, and the check that they are finite."""

    def __init__(
        self,
        writer: MetricsWriter | NoMetrics,
        schedule: Callable[[int], Any],
        every: int,
        start: int,
        last: int,
    ) -> None:
        self._writer, self._schedule, self._every = writer, schedule, every
        self._bar = tqdm(total=last, initial=start, unit="step", desc="training", disable=not is_first())
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out of tokens/s what was done besides training."""
        self._tokens, self._slots, self._since = 0.0, 0, time.perf_counter()

    def __call__(self, step: int, metrics: dict[str, jax.Array], slots: int) -> None:
        """Takes the metrics of a step, and how many tokens its rows had room for."""
        values = {name: float(value) for name, value in metrics.items()}
        _check_finite(step, values["loss"], values["grad_norm"])
        self._bar.update(1)
        self._tokens += values.pop("tokens")
        self._slots += slots
        if step % self._every:
            return
        rate = self._tokens / (time.perf_counter() - self._since)
        padding = 1 - self._tokens / self._slots
        self.restart_clock()
        self._bar.set_postfix_str(f"loss {values['loss']:.3f}, {rate:,.0f} tokens/s")
        learning_rate = float(self._schedule(step - 1))
        more = {"learning_rate": learning_rate, "tokens_per_second": rate, "padding": padding}
        self._writer.write(step, {**values, **more})

    def close(self) -> None:
        self._bar.close()
