"""Several processes train as one would; whatever happens to them, the run resumes as if nothing had."""

import os
import signal
import time

import pytest
from processes import children, finish, losses, printed_random, start, wait_for_step

from gist_jax.training import distributed

STEPS = 24
SETTINGS = dict(num_steps=STEPS, mesh__data=1, mesh__fsdp=-1, checkpoint__every=5)

SPLITS = ("human", "seen", "unseen")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The workdir of one process with four devices."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    finish(start(workdir, 1, 4, **SETTINGS))
    assert list(losses(workdir)) == list(range(1, STEPS + 1))
    return workdir


def check_same(workdir, undisturbed):
    """Losses, and what the trained model writes."""
    assert losses(workdir) == pytest.approx(losses(undisturbed), rel=1e-5)
    written = sorted((undisturbed / "predictions").iterdir())
    assert [path.name for path in written] == [f"{STEPS}-validation_{s}.csv" for s in SPLITS]
    for path in written:
        assert (workdir / "predictions" / path.name).read_text() == path.read_text()


def test_processes_share_the_devices_of_a_run(undisturbed, tmp_path):
    """Four processes, two until SIGTERM, and then one: the same losses as one from the beginning."""
    finish(start(tmp_path / "four", 4, 1, **SETTINGS))
    check_same(tmp_path / "four", undisturbed)

    changing = tmp_path / "changing"
    run = start(changing, 2, 2, **SETTINGS)
    wait_for_step(run, changing, 7)
    os.kill(children(run)[1], signal.SIGTERM)  # one of them; it tells the other
    assert "the same command resumes" in finish(run, 143)
    saved = max(losses(changing))
    assert 7 <= saved < STEPS
    assert (changing / "checkpoints" / str(saved)).is_dir()
    finish(start(changing, 1, 4, **SETTINGS))
    check_same(changing, undisturbed)


def test_one_process_of_two_is_killed_and_a_checkpoint_is_damaged(undisturbed, tmp_path):
    """At three moments: while they start, in a step, and while a checkpoint is written."""
    rng = printed_random()
    for moment in ("start", "step", "save"):
        run = start(tmp_path, 2, 2, **SETTINGS)
        if moment == "start":
            time.sleep(rng.uniform(2, 6))
        else:
            wait_for_step(run, tmp_path, 6 if moment == "step" else 15)
            time.sleep(rng.uniform(0, 0.05))
        os.kill(children(run)[rng.randrange(2)], signal.SIGKILL)
        finish(run, 128 + signal.SIGKILL)

    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    largest = max(newest.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    written = finish(start(tmp_path, 2, 2, **SETTINGS))
    assert f"CHECKPOINT {newest.name} CANNOT BE READ" in written
    assert (tmp_path / f"damaged-{newest.name}").is_dir()
    check_same(tmp_path, undisturbed)


def test_a_mistake_in_one_process_ends_all(tmp_path):
    """At once, though the others wait for it: a file stands where the first would make the workdir."""
    (tmp_path / "workdir").write_text("")
    began = time.monotonic()
    written = finish(start(tmp_path / "workdir", 2, 1, **SETTINGS), 1)
    assert "error:" in written and "File exists" in written
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2, but must be below JAX_NUM_PROCESSES"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost"}, "is 'localhost', but must be HOST:PORT"),
        ({"JAX_NUM_PROCESSES": "two"}, "needs the numbers JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
    ],
)
def test_mistakes_in_the_variables(variables, sentence, monkeypatch):
    right = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    for name, value in (right | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=sentence):
        distributed.initialize()
