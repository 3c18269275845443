"""Several processes as one run: how they find each other, agree, and stop together."""

import hashlib
import os
import signal
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gist_jax.errors import UserError

# Set for every process by launch/local.py, or by hand where no cluster manager is known to jax.
COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def initialize() -> None:
    """Joins the other processes of a run; to be called before anything is computed.

    They are those that the three variables above tell of, or else those of the cluster that jax finds
    itself in (SLURM, a TPU pod, Kubernetes, Open MPI). Without either the process is alone.

    Raises:
      UserError: if only some of the variables are set, or one is no number.
    """
    given = {name: os.environ[name] for name in (COORDINATOR, COUNT, INDEX) if name in os.environ}
    if not given:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address" not in str(error):  # or else jax knows of no cluster
                raise
        return
    if len(given) < 3 or not all(given[name].isdigit() for name in (COUNT, INDEX)):
        raise UserError(f"{COORDINATOR} needs the numbers {COUNT} and {INDEX} too")
    address, count, index = given[COORDINATOR], int(given[COUNT]), int(given[INDEX])
    if index >= count:
        raise UserError(f"{INDEX} is {index}, but must be below {COUNT}, which is {count}")
    if not address.rpartition(":")[2].isdigit() or ":" not in address:
        raise UserError(f"{COORDINATOR} is {address!r}, but must be HOST:PORT")
    jax.distributed.initialize(address, count, index)


def is_first() -> bool:
    """Whether this is the process that writes logs and describes the run."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns once every process has come to the same place."""
    multihost_utils.sync_global_devices(name)


def all_true(value: bool) -> bool:
    """Whether `value` is true in every process."""
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def check_same(what: str, text: str) -> None:
    """Raises UserError in every process if `text` differs between them."""
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint32)
    found = multihost_utils.process_allgather(digest).reshape(-1, digest.size)
    if not (found == found[0]).all():
        raise UserError(f"the processes of this run do not have the same {what}")


class Preempted(Exception):
    """The run must stop, in the middle of what it does."""


class Preemption:
    """Notices SIGTERM, so that a run can save before it stops. A context manager.

    Of several processes any may get the signal: jax tells the others, and all learn of it the same time
    that they ask.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._asked = 0  # times; the same in every process
        self._before: Any = None  # what handled the signal before

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def _notice(self, *_: object) -> None:
        self._signalled = True

    def __call__(self) -> bool:
        """Whether the run must stop; every process asks equally often."""
        self._asked += 1
        if multihost_utils.reached_preemption_sync_point(self._asked):
            self._signalled = True
        return self._signalled

    def check(self) -> None:
        """Raises Preempted if the run must stop; every process calls it equally often."""
        if self():
            raise Preempted

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
