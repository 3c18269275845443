"""A bucket as workdir: a run leaves there what it leaves on a disk, whatever happens meanwhile."""

import functools
import importlib.util
import signal

import pytest
from bucket_server import BucketServer
from forks import Forks
from processes import command, losses, printed_random

import gist_jax
from gist_jax import storage
from gist_jax.errors import UserError
from gist_jax.training.metrics import _Objects
from gist_jax.workdir import metrics_objects

STEPS = 10
SETTINGS = dict(num_steps=STEPS, checkpoint__every=3)
needs_gcsfs = pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="needs pip install 'gist_jax[gcs]'"
)


@pytest.mark.slow
@needs_gcsfs
def test_a_run_that_is_killed_three_times_while_requests_fail(tmp_path, monkeypatch):
    """One request in fifty fails; the run is killed at any request, in a save as in a step."""
    rng, workdir = printed_random(), "gs://bucket/folder/run"
    with BucketServer(fails_every=50) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with Forks() as forks:
            assert forks.run(command(tmp_path, **SETTINGS)) == 0
            for few, many in ((20, 100), (100, 250), (100, 250)):
                kills = functools.partial(server.after, rng.randint(few, many))
                assert forks.run(command(workdir, **SETTINGS), kills) == -signal.SIGKILL
            assert forks.run(command(workdir, **SETTINGS)) == 0
        assert server.failed > 5
        assert losses(workdir) == losses(tmp_path)
        assert list(losses(workdir)) == list(range(1, STEPS + 1))
        names = [name.removeprefix("folder/run/") for name in server.objects]
        for path in (tmp_path / "predictions").iterdir():
            written = server.objects[f"folder/run/predictions/{path.name}"]
            assert written.data == path.read_bytes()
        saved = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
        assert saved <= {"6", "9", "10"} and "10" in saved  # the rest is cleaned up
        on_disk, in_bucket = gist_jax.load(tmp_path), gist_jax.load(workdir)
        assert in_bucket.origin == on_disk.origin
        texts = [
            lm.generate(instructions="Say it.", inputs="a word", max_new_tokens=2)
            for lm in (on_disk, in_bucket)
        ]
        assert texts[0] == texts[1]


@pytest.mark.slow
@needs_gcsfs
def test_models_that_are_not_there(monkeypatch):
    with BucketServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="there is no bucket gs://another"):
            gist_jax.load("gs://another/run")
        with pytest.raises(UserError, match="gs://bucket/run holds no trained run"):
            gist_jax.load("gs://bucket/run")


def test_metrics_are_objects_that_a_restart_cuts(tmp_path):
    """As they are numbered; a directory will do."""
    (tmp_path / "metrics").mkdir()

    def write(start, lines):
        writer = _Objects(tmp_path, start)
        for step, text in lines:
            writer.write(step, text)

    write(0, [(1, "a"), (2, "b"), (2, "evaluated"), (3, "lost"), (10, "lost")])
    write(2, [(3, "c"), (4, "d")])
    texts = [path.read_text() for path in metrics_objects(tmp_path)]
    assert texts == ["a", "b", "evaluated", "c", "d"]


def test_paths_that_are_refused(monkeypatch):
    for path, sentence in (
        ("s3://bucket/run", "s3://bucket/run is no directory, and no gs:// folder: mount the bucket"),
        ("gs://bucket", "gs://bucket names no folder of a bucket: write gs://BUCKET/FOLDER"),
        ("gs:///run", "gs:///run names no folder of a bucket"),
    ):
        with pytest.raises(UserError, match=sentence):
            storage.as_path(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package gcsfs: pip install 'gist_jax\[gcs\]'"):
        storage.as_path("gs://not-seen-yet/run")
