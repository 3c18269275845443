"""A run that is stopped in any way resumes as if nothing had happened."""

import resource
import signal
import time

import pytest
from processes import command, finish, lines, losses, printed_random, run, wait_for, wait_for_step

SETTINGS = dict(num_steps=60, checkpoint__every=7, evaluation__every=30)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The workdir of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    finish(run(command(workdir, **SETTINGS)))
    return workdir


def check_same(workdir, undisturbed):
    assert losses(workdir) == losses(undisturbed)
    assert list(losses(workdir)) == list(range(1, SETTINGS["num_steps"] + 1))
    predictions = [{path.name for path in (w / "predictions").iterdir()} for w in (workdir, undisturbed)]
    assert predictions[0] == predictions[1]


def test_sigkill_at_random_moments(undisturbed, tmp_path):
    rng = printed_random()
    for _ in range(2):  # while it starts: nothing that is half written may count
        killed = run(command(tmp_path, **SETTINGS))
        time.sleep(rng.uniform(1, 6))
        killed.kill()
        finish(killed, -signal.SIGKILL)
    for _ in range(3):
        # After some further steps, and then at any moment: in a step, a save or an evaluation.
        wanted = len(lines(tmp_path)) + rng.randint(1, 12)
        killed = run(command(tmp_path, **SETTINGS))
        wait_for(killed, lambda wanted=wanted: len(lines(tmp_path)) >= wanted)
        time.sleep(rng.uniform(0, 0.3))
        killed.kill()
        killed.communicate()
        assert killed.returncode in (-signal.SIGKILL, 0)
    finish(run(command(tmp_path, **SETTINGS)))
    check_same(tmp_path, undisturbed)


def test_sigterm_and_a_full_disk(undisturbed, tmp_path):
    """The first saves at once; of what was saved the second loses nothing."""
    stopped = run(command(tmp_path, **SETTINGS))
    wait_for_step(stopped, tmp_path, 18)
    stopped.terminate()
    assert "the same command resumes" in finish(stopped, 128 + signal.SIGTERM)
    saved = max(losses(tmp_path))
    checkpoints = tmp_path / "checkpoints"
    kept = {path.name for path in checkpoints.iterdir()}
    assert 18 <= saved < 60 and str(saved) in kept

    def fill_the_disk():  # files of a checkpoint are larger than that
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    written = finish(run(command(tmp_path, **SETTINGS), preexec_fn=fill_the_disk), 1)
    assert "error: cannot save a checkpoint in" in written.splitlines()[-1]
    assert kept <= {path.name for path in checkpoints.iterdir()}
    finish(run(command(tmp_path, **SETTINGS)))
    check_same(tmp_path, undisturbed)
