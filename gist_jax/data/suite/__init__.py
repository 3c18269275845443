"""Prompts unlike what models here are trained with, written by hand, with outcomes that can be checked.

A file for each domain holds its items, lists of records:

    instruction   what is compressed; some are shared by items with other inputs
    input, output  an output that passes all checks
    checks        what any good output does, see `gist_jax.evaluation.suite`, such as {"contains": "tea"}
    literals      texts of the instruction that must stand in the output letter by letter

As a data source it is called "suite", with one split of that name.
"""

import functools
import importlib.resources
import json
from typing import Any, NamedTuple

DOMAINS = (
    "writing",
    "code",
    "reasoning",
    "extraction",
    "formatting",
    "long_instructions",
    "names_and_numbers",
)


class Item(NamedTuple):
    """One prompt of the suite."""

    domain: str
    instruction: str
    input: str
    output: str
    checks: tuple[tuple[str, Any], ...]  # kind and value
    literals: tuple[str, ...] = ()


@functools.cache
def items() -> tuple[Item, ...]:
    """All items, domain by domain."""
    return tuple(
        Item(
            domain,
            record["instruction"],
            record["input"],
            record["output"],
            tuple(pair for check in record["checks"] for pair in check.items()),
            tuple(record.get("literals", ())),
        )
        for domain in DOMAINS
        for record in json.loads(_read(domain))
    )


def examples() -> list[dict[str, str]]:
    """The items as examples of a split; "source" is the domain."""
    return [
        {"instruction": x.instruction, "input": x.input, "output": x.output, "source": x.domain}
        for x in items()
    ]


def fingerprint() -> str:
    """What all there is to read, in one text."""
    return "\n".join(map(_read, DOMAINS))


def _read(domain: str) -> str:
    return (importlib.resources.files(__package__) / f"{domain}.json").read_text(encoding="utf-8")
