"""glibc's allocator, told to keep the memory that a program frees.

A step of training on a CPU frees hundreds of megabytes and asks for as many again. By default glibc
gives them back to the system in between, and the system clears every page anew: up to a quarter of a
step's time.
"""

import ctypes
import glob
import os
import sys
from collections.abc import Mapping, Sequence

# Those that train or generate. `convert` needs little memory at a time, and is to keep none.
COMMANDS = ("train", "evaluate", "compress", "generate", "library", "label", "demo", "benchmark")
# Parameters of malloc.h and their values: one arena, so that threads do not keep memory apart; no
# mappings of their own for large blocks; and nothing is given back.
SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}

# What the drivers of GPUs and TPUs make. Beside one of those little is computed in a host's memory.
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


def runs_command(arguments: Sequence[str]) -> bool:
    """Whether a process with these arguments runs one of COMMANDS by `python -m gist_jax.NAME`."""
    module, rest = "", list(arguments[1:])
    while rest and rest[0].startswith("-") and not rest[0].startswith("-c") and not module:
        option = rest.pop(0)
        if option in ("-X", "-W"):  # options of Python itself that have a value
            rest = rest[1:]
        elif option.startswith("-m"):
            module = option[2:] or "".join(rest[:1])
    package, _, command = module.partition(".")
    return package == "gist_jax" and command.partition(".")[0] in COMMANDS


def computes_on_cpu(environment: Mapping[str, str]) -> bool:
    """Whether JAX is told to, or there is no sign of an accelerator."""
    only_cpu = environment.get("JAX_PLATFORMS") == "cpu"
    return only_cpu or not any(glob.glob(pattern) for pattern in ACCELERATORS)


def is_set_by_user(environment: Mapping[str, str]) -> bool:
    """Whether a user has settings of the allocator, over which ours must not go."""
    return any(name.startswith("MALLOC_") for name in environment) or (
        "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")
    )


def keep_freed_memory() -> None:
    """Applies SETTINGS to this process, where its allocator is glibc's; call it before loading JAX."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows
        return
    if hasattr(libc, "gnu_get_libc_version") and not is_set_by_user(os.environ):
        for parameter, value in SETTINGS.values():
            libc.mallopt(parameter, value)


def set_up() -> None:
    """Keeps freed memory if this process runs one of COMMANDS on a CPU."""
    if runs_command(sys.orig_argv) and computes_on_cpu(os.environ):
        keep_freed_memory()
