"""Runs of gist_jax.train in forks of one process, which has imported what takes them long to import.

As a program it reads the arguments of a run a line, in JSON, and answers with the fork's process id and,
when that has ended, its exit code.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable

from processes import QUICKLY, ROOT


class Forks:
    """Starts runs in this process's environment, one at a time, while it is a context."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=os.environ | QUICKLY | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_):
        self.process.communicate()

    def run(self, command: list[str], kills: Callable[[Callable[[], None]], None] | None = None) -> int:
        """Runs a command of `processes.command`; its exit code.

        Args:
          kills: is given the function that kills the run, to call it when it likes.
        """
        assert command[1:3] == ["-m", "gist_jax.train"]
        print(json.dumps(command[2:]), file=self.process.stdin, flush=True)
        pid, ended = int(self.process.stdout.readline()), threading.Event()
        if kills is not None:
            kills(lambda: None if ended.is_set() else os.kill(pid, signal.SIGKILL))
        code = int(self.process.stdout.readline())
        ended.set()
        return code


def main() -> None:
    """Forks a run for every line."""
    import gcsfs.extended_gcsfs  # noqa: F401, what uploads import
    import google.cloud.storage  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401

    from gist_jax import train

    warnings.filterwarnings("ignore", r"os\.fork\(\) was called")  # JAX has no threads yet
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        if pid := os.fork():
            print(pid, file=answers, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
            continue
        sys.argv, code = json.loads(line), 1
        try:
            train.main()
            code = 0
        except SystemExit as stop:
            print(stop, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        os._exit(code)


if __name__ == "__main__":
    main()
