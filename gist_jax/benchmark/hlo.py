"""The text of a compiled program, `compiled.as_text()`: its operations, by computation."""

import math
import re
from typing import NamedTuple

import jax


class Operation(NamedTuple):
    """A line `name = shape opcode(arguments), attributes`."""

    root: str | None  # not None if it is the computation's result
    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    def operands(self) -> list[str]:
        return _NAME.findall(self.arguments)

    def attribute(self, name: str) -> str:
        return re.search(rf"\b{name}=%?([\w.-]+)", self.attributes)[1]

    def called(self) -> list[str]:
        return [name for names in _CALLED.findall(self.attributes) for name in _NAME.findall(names)]


# Operations by name, in computations by name.
Computation = dict[str, Operation]
Program = dict[str, Computation]

MAIN = "ENTRY"  # name of the computation that is run
_NAME = re.compile(r"%([\w.-]+)")
_COMPUTATION = re.compile(r"(ENTRY )?%([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"\s+(ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*?)\)(.*)")
_CALLED = re.compile(r"\b(?:calls|to_apply|\w+_computations?)=(\{[^}]*\}|%[\w.-]+)")


def parse(text: str) -> Program:
    """Reads the text of a program compiled for CPUs, GPUs or TPUs."""
    program: Program = {}
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            computation = program.setdefault(MAIN if found[1] else found[2], {})
        elif found := _OPERATION.match(line):
            computation[found[2]] = Operation(*found.groups())
    return program


def bytes_accessed(compiled: jax.stages.Compiled) -> float:
    """Bytes that a compiled program reads and writes, as XLA counts them.

    XLA takes a table as read whole where a fusion looks up some rows. Here it is these rows.
    """
    program = parse(compiled.as_text())
    del program[MAIN]
    unread = 0
    for computation in program.values():
        for operation in computation.values():
            if operation.opcode == "gather":
                table = computation[operation.operands()[0]]
                if table.opcode == "parameter":
                    unread += shape_bytes(table.shape) - shape_bytes(operation.shape)
    return compiled.cost_analysis()["bytes accessed"] - unread


def shape_bytes(shape: str) -> int:
    """Of an array or of all arrays of a tuple, `(bf16[2,3]{1,0}, f32[])`."""
    total = 0
    for dtype, dimensions in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        total += -(-bits * math.prod(map(int, filter(None, dimensions.split(",")))) // 8)
    return total
