"""The text of a compiled program, `compiled.as_text()`: its operations, by computation."""

import math
import re
from typing import NamedTuple

import jax


def matched(match: re.Match[str] | None) -> re.Match[str]:
    """The match of a pattern that XLA's text always has."""
    assert match is not None
    return match


class Operation(NamedTuple):
    """A line `name = shape opcode(arguments), attributes`."""

    root: str | None  # not None if it is the computation's result
    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    def operands(self) -> list[str]:
        """Names of the operations it takes."""
        return _NAME.findall(self.arguments)

    def attribute(self, name: str) -> str:
        """Value of an attribute, such as the body of a loop."""
        return matched(re.search(rf"\b{name}=%?([\w.-]+)", self.attributes))[1]

    def called(self) -> list[str]:
        """Names of the computations it runs."""
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
        if match := _COMPUTATION.match(line):
            computation = program.setdefault(MAIN if match[1] else match[2], {})
        elif match := _OPERATION.match(line):
            computation[match[2]] = Operation(*match.groups())
    return program


def bytes_accessed(compiled: jax.stages.Compiled) -> float:
    """Bytes that a compiled program reads and writes, as XLA counts them.

    XLA takes a table as read whole where a fusion looks up some rows. Here it is these rows.
    """
    text, analysis = compiled.as_text(), compiled.cost_analysis()
    assert text is not None and analysis is not None  # every platform has them
    program = parse(text)
    del program[MAIN]
    unread = 0
    for computation in program.values():
        for operation in computation.values():
            if operation.opcode == "gather":
                table = computation[operation.operands()[0]]
                if table.opcode == "parameter":
                    unread += shape_bytes(table.shape) - shape_bytes(operation.shape)
    return analysis["bytes accessed"] - unread


def shape_bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, `(bf16[2,3]{1,0}, f32[])`."""
    total = 0
    for dtype, dimensions in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int(matched(re.search(r"\d+", dtype))[0])
        total += -(-bits * math.prod(map(int, filter(None, dimensions.split(",")))) // 8)
    return total
