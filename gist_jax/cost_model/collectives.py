"""What the devices that run a compiled program send each other, read from its text.

The text has a collective once that a loop repeats, and a TPU's text has one several times that runs
alongside several other operations. Here each counts as often as it runs.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from gist_jax.cost_model.hlo import MAIN, Computation, Operation, Program, matched, parse, shape_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """An operation by which devices exchange data."""

    kind: str  # of KINDS
    bytes: int  # of the whole output, or input of a reduce-scatter, of one device in one execution
    group_size: int  # devices that exchange data with each other
    times: int  # executions
    inside: str  # name of the innermost loop's body, or ""


def collectives(text: str) -> list[Collective]:
    """The collectives of a program, `compiled.as_text()`, compiled for CPUs, GPUs or TPUs.

    Of a conditional all branches count.

    Raises:
      ValueError: if the trip count of a loop with collectives in it cannot be found.
    """
    program = parse(text)
    header = text.partition("\n")[0]
    devices = math.prod(map(int, re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)))
    return list(_inside(program, devices, MAIN, ""))


def bytes_sent(collective: Collective) -> int:
    """Bytes that one device sends in one execution, in a ring."""
    whole, n = collective.bytes, collective.group_size
    if collective.kind == "collective-permute":
        return whole
    rounds = 2 if collective.kind == "all-reduce" else 1
    return rounds * whole * (n - 1) // n


def _inside(program: Program, devices: int, name: str, loop: str) -> Iterator[Collective]:
    """Collectives of one run of a computation of that name, and of all it calls.

    Args:
      devices: of the program.
      loop: name of the innermost body around.
    """
    computation = program[name]
    for operation in computation.values():
        kind = operation.opcode.removesuffix("-start")
        if kind in KINDS:
            if not _is_continuation(name, computation, operation):
                yield _collective(kind, name, computation, operation, devices, loop)
        elif operation.opcode == "while":
            body = operation.attribute("body")
            found = list(_inside(program, devices, body, body))
            trips = trip_count(program, computation, operation) if found else 0
            yield from (inner._replace(times=inner.times * trips) for inner in found)
        elif not operation.opcode.endswith(("-update", "-done")):  # they name what -start has called
            for called in operation.called():
                yield from _inside(program, devices, called, loop)


def _is_continuation(name: str, computation: Computation, operation: Operation) -> bool:
    """Whether an operation is a later part of what a TPU's AsyncCollectiveStart began."""
    return name.startswith("async_collective_fusion") or any(
        '"AsyncCollectiveDone"' in user.attributes for user in _users(computation, operation)
    )


def _collective(
    kind: str, name: str, computation: Computation, operation: Operation, devices: int, loop: str
) -> Collective:
    # The shape of -start has the operands in it too, that of -done the output alone.
    last = operation if kind == operation.opcode else _end(computation, operation)
    size = shape_bytes(last.shape)
    if kind == "collective-permute":
        return Collective(kind, size, _longest_chain(operation.attributes), 1, loop)
    group_size = _group_size(operation.attributes) or devices
    if kind == "reduce-scatter":
        size *= group_size
    # A TPU's reduce-scatter may be written as an all-reduce, of which each device takes slices.
    elif name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    return Collective(kind, size, group_size, 1, loop)


def _users(computation: Computation, operation: Operation) -> list[Operation]:
    return [user for user in computation.values() if operation.name in user.operands()]


def _end(computation: Computation, operation: Operation) -> Operation:
    """The -done of a -start, behind any -update."""
    while not operation.opcode.endswith("-done"):
        (operation,) = _users(computation, operation)
    return operation


def _group_size(attributes: str) -> int:
    """The size of the groups that exchange data; 0 if that is all devices.

    They are written `{{0,1},{2,3}}`, `[2,8]<=[16]` or `mesh['x'=2,'y'=8] {'y'}`; all devices are `{}`.
    """
    groups = matched(re.search(r"replica_groups=(.*)", attributes))[1].replace("'", "")
    if match := re.match(r"\[\d+,(\d+)\]", groups):
        return int(match[1])
    if match := re.match(r"mesh\[(.*?)\].*?\{(.*?)\}", groups):
        sizes = dict(axis.split("=") for axis in match[1].split(","))
        # A part of an axis is written `x:(size of the parts before it)size`.
        axes = (axis.partition(":") for axis in match[2].split(","))
        return math.prod(int(part.partition(")")[2] or sizes[axis]) for axis, _, part in axes)
    first = matched(re.match(r"\{\{?([\d,]*)\}", groups))[1]
    return len(first.split(",")) if first else 0


def _longest_chain(attributes: str) -> int:
    """Devices along which data would travel by `source_target_pairs={{0,1},{1,0},{2,3},{3,2}}`: 2."""
    pairs = matched(re.search(r"source_target_pairs=\{(.*?)\}\}", attributes))[1]
    targets = dict(re.findall(r"(\d+),(\d+)", pairs))
    longest = 0
    for device in targets:
        chain: set[str] = set()
        while device and device not in chain:
            chain.add(device)
            device = targets.get(device)
        longest = max(longest, len(chain))
    return longest


def trip_count(program: Program, around: Computation, loop: Operation) -> int:
    """How often the body of a loop runs: as noted, or by its counter's start, step and bound."""
    if noted := re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.attributes):
        return int(noted[1])
    condition, body = (program[loop.attribute(name)] for name in ("condition", "body"))
    try:
        compare = _root(condition)
        counter, bound = (_source(condition, name) for name in compare.operands())
        index = int(counter.attribute("index"))
        start = _source(around, _source(around, loop.operands()[0]).operands()[index])
        grown = _source(body, _root(body).operands()[index])
        added = (_source(body, name) for name in grown.operands())
        (step,) = (int(number.arguments) for number in added if number.opcode == "constant")
        if (compare.attribute("direction"), grown.opcode) == ("LT", "add"):
            return -(-(int(bound.arguments) - int(start.arguments)) // step)
    except (IndexError, TypeError, ValueError):
        pass  # something is not there, or no number
    raise ValueError(f"loop {loop.name} does not show its trip count")


def _root(computation: Computation) -> Operation:
    return next(operation for operation in computation.values() if operation.root)


def _source(computation: Computation, name: str) -> Operation:
    """The operation of that name, or the one it copies."""
    operation = computation[name]
    while operation.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
        operation = computation[operation.operands()[0]]
    return operation
