"""Runs a command in several processes of this machine, as one run.

python launch/local.py --processes=2 --devices=4 -- python -m gist_jax.train --config=… --workdir=DIR
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO

from gist_jax.cli import exit_on_user_error, parser
from gist_jax.errors import UserError

SAVED = 143  # exit code of a run that SIGTERM stopped, and that all its processes end with
GRACE = 5.0  # seconds that the others have when one failed: they may be ending by the same cause
KILL = 2.0  # seconds from SIGTERM to SIGKILL: with one process dead there is no saving
LINES = 20  # shown of what a failed process wrote to stderr

# Comes before the command: Linux is to kill the process when the launcher dies, whatever of (1 is
# PR_SET_PDEATHSIG of prctl.h). It survives exec, but not a fork: a process that the command starts
# without waiting for it may outlive the launcher.
_LEASH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):  # it died before that
    os.kill(os.getpid(), signal.SIGKILL)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def main() -> None:
    arguments = parser(__doc__.split("\n")[0])
    arguments.add_argument("--processes", type=_count, required=True, help="how many")
    arguments.add_argument("--devices", type=_count, help="of each process, simulated on the CPU")
    arguments.add_argument("--dry-run", action="store_true", help="only print what would be run")
    arguments.add_argument("command", metavar="COMMAND", nargs="+", help="written after --")
    options = arguments.parse_args()
    settings = _settings(options.processes, options.devices)
    if options.dry_run:
        for setting in settings:
            print(shlex.join(["env", *(f"{k}={v}" for k, v in setting.items()), *options.command]))
        return
    with exit_on_user_error():
        if shutil.which(options.command[0]) is None:
            raise UserError(f"there is no command {options.command[0]}")
        sys.exit(_run(options.command, settings))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _settings(processes: int, devices: int | None) -> list[dict[str, str]]:
    """What each process finds in its environment besides what is there."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    simulated = {}
    if devices is not None:
        flags = [os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={devices}"]
        simulated = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(filter(None, flags))}
    return [
        {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
            **(simulated or {"JAX_LOCAL_DEVICE_IDS": str(number)}),  # the GPU of its number
        }
        for number in range(processes)
    ]


def _run(command: Sequence[str], settings: Sequence[dict[str, str]]) -> int:
    """Runs all to the end: 0, or the exit code of the first that failed."""
    asked = threading.Event()
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: asked.set())
    with contextlib.ExitStack() as files:
        written: list[IO[bytes]] = [files.enter_context(tempfile.TemporaryFile()) for _ in settings]
        processes = [_start(command, *each) for each in zip(settings, written, strict=True)]
        return _wait(processes, written, asked)


def _wait(processes: list[subprocess.Popen], written: list[IO[bytes]], asked: threading.Event) -> int:
    code, kill_at, kill_by = 0, float("inf"), signal.SIGTERM
    running = set(range(len(processes)))
    while running:
        time.sleep(0.05)
        if asked.is_set():
            asked.clear()
            for number in running:
                processes[number].terminate()
        for number in sorted(running):
            ended = processes[number].poll()
            if ended is None:
                continue
            running.remove(number)
            if ended and code in (0, SAVED):  # a failure counts more than that others have saved
                code = ended if ended > 0 else 128 - ended  # as a shell has it
            # When one has saved so have the others, and they are left to end by themselves.
            if ended not in (0, SAVED) and kill_by == signal.SIGTERM:  # else it ended by our hand
                _report(number, ended, written[number])
                kill_at = min(kill_at, time.monotonic() + GRACE)
        if time.monotonic() > kill_at:
            for number in running:
                os.killpg(processes[number].pid, kill_by)
            kill_at, kill_by = time.monotonic() + KILL, signal.SIGKILL
    return code


def _start(command: Sequence[str], setting: dict[str, str], written: IO[bytes]) -> subprocess.Popen:
    leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
    first = setting["JAX_PROCESS_ID"] == "0"
    return subprocess.Popen(
        [*(leash if sys.platform == "linux" else []), *command],
        env=os.environ | setting,
        stdin=subprocess.DEVNULL,
        stdout=None if first else subprocess.DEVNULL,
        stderr=None if first else written,
        process_group=0,  # or Ctrl-C would end them before they could save
    )


def _report(number: int, ended: int, written: IO[bytes]) -> None:
    how = f"exited with code {ended}" if ended > 0 else f"was ended by signal {-ended}"
    print(f"error: process {number} {how}", file=sys.stderr)
    written.seek(0)
    for line in written.read().decode(errors="replace").splitlines()[-LINES:]:
        print(f"  {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
