"""A launcher starts what it says, passes signals and exit codes on, and leaves nothing behind."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest
from commands import mistake
from launch_scripts import ROOT, alive, script, signal_this_process, wait_for

local = script("local")

# Begins every child: `number` is its own, `folder` where it may write.
CHILD = """
import json, os, pathlib, signal, sys, time
number, folder = int(os.environ["JAX_PROCESS_ID"]), pathlib.Path({folder!r})
def ready(): (folder / f"ready{{number}}").write_text(str(os.getpid()))
"""


@pytest.fixture
def child(tmp_path):
    """A command that runs some Python in every process."""

    def command(text: str) -> list[str]:
        return ["--", sys.executable, "-S", "-c", CHILD.format(folder=str(tmp_path)) + text]

    return command


def started(folder: pathlib.Path) -> list[int]:
    """The numbers that the system gave to processes that are ready."""
    return [int(text) for f in folder.glob("ready*") if (text := f.read_text())]


def test_every_process_finds_its_place(run_script, child, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_before=1")
    write = """
(folder / str(number)).write_text(json.dumps({**os.environ, "group": os.getpgrp()}))
print("I am", number)
"""
    code, out, err = run_script(local, "--processes=3", "--devices=2", *child(write))
    assert (code, out, err) == (0, "I am 0\n", "")  # only the first speaks
    places = [json.loads((tmp_path / str(number)).read_text()) for number in range(3)]
    assert len({place["JAX_COORDINATOR_ADDRESS"] for place in places}) == 1
    host, port = places[0]["JAX_COORDINATOR_ADDRESS"].split(":")
    assert host == "localhost" and int(port) > 0
    for number, place in enumerate(places):
        assert (place["JAX_PROCESS_ID"], place["JAX_NUM_PROCESSES"]) == (str(number), "3")
        assert place["XLA_FLAGS"] == "--xla_before=1 --xla_force_host_platform_device_count=2"
        assert place["JAX_PLATFORMS"] == "cpu"
        assert place["group"] != os.getpgrp()  # so that Ctrl-C does not reach it


def test_the_first_failure_decides(run_script, child, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "GRACE", 0.4)
    monkeypatch.setattr(local, "KILL", 0.2)
    fail = """
if number == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready()
    time.sleep(15)
while not (folder / "ready0").exists(): time.sleep(0.01)
if number == 1: sys.exit("the cause")
time.sleep(0.2)
sys.exit(7)
"""
    code, _, err = run_script(local, "--processes=3", *child(fail))
    assert code == 1
    assert err.splitlines() == [
        "error: process 1 exited with code 1",
        "  the cause",
        "error: process 2 exited with code 7",
    ]
    assert not any(map(alive, started(tmp_path)))


def test_a_signal_is_a_failure(run_script, child, monkeypatch):
    monkeypatch.setattr(local, "GRACE", 0.1)
    kill = "os.kill(os.getpid(), signal.SIGKILL) if number else time.sleep(15)"
    code, _, err = run_script(local, "--processes=2", *child(kill))
    assert code == 128 + signal.SIGKILL
    assert err == "error: process 1 was ended by signal 9\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_launcher_lets_processes_save(run_script, child, tmp_path, monkeypatch, number):
    monkeypatch.setattr(local, "GRACE", 0.1)  # no limit to saving
    save = """
def save(*_):
    time.sleep(0.6 * number)
    (folder / f"saved{number}").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
ready()
time.sleep(15)
"""
    signal_this_process(number, lambda: len(started(tmp_path)) == 2)
    assert run_script(local, "--processes=2", *child(save)) == (143, "", "")
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="as only Linux has it")
def test_no_process_outlives_its_launcher(child, tmp_path):
    command = [sys.executable, ROOT / "launch" / "local.py", "--processes=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([*command, *child("ready(); time.sleep(15)")], env=environment)
    wait_for(lambda: len(started(tmp_path)) == 2)
    assert all(map(alive, started(tmp_path)))
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(map(alive, started(tmp_path))))


def test_local_dry_run(run_script, tmp_path):
    command = ["touch", str(tmp_path / "a b")]
    code, out, _ = run_script(local, "--processes=2", "--devices=4", "--dry-run", "--", *command)
    assert code == 0 and not list(tmp_path.iterdir())
    for number, line in enumerate(map(shlex.split, out.splitlines())):
        assert line[0] == "env" and line[-2:] == command
        assert {"JAX_NUM_PROCESSES=2", f"JAX_PROCESS_ID={number}", "JAX_PLATFORMS=cpu"} < set(line)
    subprocess.run(out, shell=True, check=True)  # what is printed can be run
    assert (tmp_path / "a b").exists()


def test_mistakes_with_local(monkeypatch, capsys):
    assert mistake(local, monkeypatch, capsys, "--processes=2").count("\n") == 1
    assert "'0' is not a number" in mistake(local, monkeypatch, capsys, "--processes=0", "--", "true")
    assert "no command nope" in mistake(local, monkeypatch, capsys, "--processes=2", "--", "nope")


def test_local_a_failure_counts_more_than_that_others_have_saved(run_script, tmp_path):
    code = "import os, sys, time; n = int(os.environ['JAX_PROCESS_ID']); time.sleep(n)"
    code += "; sys.exit([143, 3][n])"
    assert run_script(local, "--processes=2", "--", sys.executable, "-c", code)[0] == 3
