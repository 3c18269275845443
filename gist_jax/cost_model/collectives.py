"""What the devices that run a compiled program send each other, read from its text.

The text has a collective once that a loop repeats, and a TPU's text has one several times that runs
alongside several other operations. Here each counts as often as it runs.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gist_jax.cost_model.hlo import MAIN, Computation, Operation, Program, matched, parse, shape_bytes
from gist_jax.cost_model.replica_groups import replica_groups

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """An operation by which devices exchange data."""

    kind: str  # of KINDS
    bytes: int  # of the whole output, or input of a reduce-scatter, of one device in one execution
    group_size: int  # devices that exchange data with each other
    times: int  # executions
    inside: str  # name of the innermost loop's body, or ""
    nodes: int = 1  # over which the devices of a group, or of a permute's pair, are spread


def collectives(text: str, per_node: int | None = None) -> list[Collective]:
    """The collectives of a program, `compiled.as_text()`, compiled for CPUs, GPUs or TPUs.

    Of a conditional all branches count.

    Args:
      per_node: devices of a node, in the order of the program's; by default there is one node.

    Raises:
      ValueError: if the trip count of a loop with collectives in it cannot be found.
    """
    program = parse(text)
    header = text.partition("\n")[0]
    devices = math.prod(map(int, re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)))
    return list(_inside(program, _Devices(devices, per_node or devices), MAIN, ""))


def bytes_sent(collective: Collective) -> int:
    """Bytes that one device sends in one execution, in a ring."""
    whole, n = collective.bytes, collective.group_size
    if collective.kind == "collective-permute":
        return whole
    rounds = 2 if collective.kind == "all-reduce" else 1
    return rounds * whole * (n - 1) // n


def bytes_between_nodes(collective: Collective) -> int:
    """Those of `bytes_sent` that go to another node, on average over a group's devices.

    A ring leaves every node once; the rings of several devices do so at several.
    """
    if collective.nodes == 1:
        return 0
    sent = bytes_sent(collective)
    if collective.kind == "collective-permute":
        return sent
    return sent * collective.nodes // collective.group_size


class _Devices(NamedTuple):
    """The devices of a program."""

    number: int
    per_node: int

    def nodes(self, groups: np.ndarray) -> int:
        """Over how many nodes a group is spread, of `[groups, devices of one]` the one over the most."""
        return max(len(set(group)) for group in (groups // self.per_node).tolist())


def _inside(program: Program, devices: _Devices, name: str, loop: str) -> Iterator[Collective]:
    """Collectives of one run of a computation of that name, and of all it calls.

    Args:
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
    kind: str, name: str, computation: Computation, operation: Operation, devices: _Devices, loop: str
) -> Collective:
    # The shape of -start has the operands in it too, that of -done the output alone.
    last = operation if kind == operation.opcode else _end(computation, operation)
    size = shape_bytes(last.shape)
    if kind == "collective-permute":
        pairs = _pairs(operation.attributes)
        nodes = devices.nodes(np.array(pairs))
        return Collective(kind, size, _longest_chain(pairs), 1, loop, nodes)
    groups = replica_groups(operation.attributes, devices.number)
    group_size = groups.shape[1]
    if kind == "reduce-scatter":
        size *= group_size
    # A TPU's reduce-scatter may be written as an all-reduce, of which each device takes slices.
    elif name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    return Collective(kind, size, group_size, 1, loop, devices.nodes(groups))


def _users(computation: Computation, operation: Operation) -> list[Operation]:
    return [user for user in computation.values() if operation.name in user.operands()]


def _end(computation: Computation, operation: Operation) -> Operation:
    """The -done of a -start, behind any -update."""
    while not operation.opcode.endswith("-done"):
        (operation,) = _users(computation, operation)
    return operation


def _pairs(attributes: str) -> list[tuple[int, int]]:
    """Who sends to whom in a permute: `source_target_pairs={{0,1},{1,0}}`."""
    pairs = matched(re.search(r"source_target_pairs=\{(.*?)\}\}", attributes))[1]
    return [(int(source), int(target)) for source, target in re.findall(r"(\d+),(\d+)", pairs)]


def _longest_chain(pairs: list[tuple[int, int]]) -> int:
    """Devices along which data would travel by such pairs: 2 of (0, 1), (1, 0), (2, 3), (3, 2)."""
    targets = dict(pairs)
    longest = 0
    for start in targets:
        chain: set[int] = set()
        device: int | None = start
        while device is not None and device not in chain:
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
