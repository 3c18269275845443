"""SIGTERM in the middle of an evaluation."""

import os
import signal

import pytest
import quick

from gist_jax.errors import Stopped
from gist_jax.evaluation.predict import evaluator
from gist_jax.training import loop
from gist_jax.training.run import prepare
from gist_jax.workdir import CHECKPOINTS, read_metrics


def test_it_saves_at_once(tmp_path):
    """What is left of the evaluation is not done; the resumed run begins with it, and ends alike."""
    config = quick.get_config()
    config.evaluation.update(every=4, batch_size=1)
    signals = [(4, 2), (4, 1), (8, 1)]  # step, and batches before

    def train(path):
        batches = []
        run = prepare(config, path)

        def evaluate(params, step, check):
            def counting():
                batches.append(step)
                if path.name == "cut" and signals and (step, batches.count(step)) == signals[0]:
                    os.kill(os.getpid(), signal.SIGTERM)
                check()

            return evaluator(run)(params, step, counting)

        loop.train(run, evaluate)
        return batches

    whole = train(tmp_path / "whole")
    while signals:
        step, count = signals[0]
        with pytest.raises(Stopped, match=f"stopped at step {step}"):
            train(tmp_path / "cut")
        assert max(int(path.name) for path in (tmp_path / "cut" / CHECKPOINTS).iterdir()) == step
        assert len(list((tmp_path / "cut" / "predictions").glob(f"{step}-*"))) == 0
        signals.pop(0)
    # The last evaluation from its start, and nothing else.
    assert train(tmp_path / "cut") == whole[len(whole) // 2 :]

    lines = [
        [{**line, "tokens_per_second": 0} for line in read_metrics(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    assert lines[0] == lines[1]
    for path in (tmp_path / "whole" / "predictions").iterdir():
        assert (tmp_path / "cut" / "predictions" / path.name).read_text() == path.read_text()
    evaluated = {}
    for name in ("whole", "cut"):
        with loop.Checkpoints(tmp_path / name / CHECKPOINTS, config.checkpoint.metric) as checkpoints:
            evaluated[name] = {c.step: c.metrics for c in checkpoints._orbax.checkpoints}
    assert evaluated["whole"] == evaluated["cut"]
