"""Which devices exchange data with each other in a collective, as XLA's text has it.

Groups are written `{{0,1},{2,3}}`, `[2,8]<=[16]` or `mesh['x'=2,'y'=8] {'y'}`; all devices are `{}`.
"""

import math
import re

import numpy as np

_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}")
_LISTED = re.compile(r"\{\{([\d,{}]*)\}\}")


def replica_groups(attributes: str, devices: int) -> np.ndarray:
    """The groups of a collective's attributes: int `[groups, devices of one]`.

    Args:
      devices: of the program.
    """
    found = re.search(r"replica_groups=(.*)", attributes)
    assert found is not None  # every collective but a permute has them
    text = found[1].replace("'", "")
    if match := _MESH.match(text):
        return _of_mesh(*match.groups())
    if match := _IOTA.match(text):
        shape, source, order = match.groups()
        return _iota(source, order).reshape(_ints(shape))
    if match := _LISTED.match(text):
        return np.array([_ints(group) for group in match[1].split("},{")])
    return np.arange(devices)[None]


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _iota(dimensions: str, order: str | None) -> np.ndarray:
    """Numbers from 0 in an array of those dimensions, which are then put in that order."""
    shape = _ints(dimensions)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers if order is None else numbers.transpose(_ints(order))


def _of_mesh(sizes: str, device_ids: str | None, axes: str) -> np.ndarray:
    """Groups along axes of a mesh.

    Args:
      sizes: of all axes, "x=2,y=8".
      device_ids: an iota, where they are not in order.
      axes: by name; a part of one is written "y:(size of the parts before it)size".
    """
    of_axes = {name: int(size) for name, size in (axis.split("=") for axis in sizes.split(","))}
    named = [_part(axis, of_axes) for axis in axes.split(",")]
    # Every axis as all of its parts: those that are named, and what lies between them.
    shape: list[int] = []
    place: dict[tuple[str, int], int] = {}
    for name, size in of_axes.items():
        done = 1
        for before, length in sorted((before, length) for axis, before, length in named if axis == name):
            shape += [before // done, length]
            place[name, before] = len(shape) - 1
            done = before * length
        shape.append(size // done)
    if device_ids is None:
        ids = np.arange(math.prod(shape))
    else:
        match = _IOTA.match(device_ids)
        assert match is not None
        ids = _iota(match[1], match[3])
    along = [place[name, before] for name, before, _ in named]
    across = [i for i in range(len(shape)) if i not in along]
    size = math.prod(shape[i] for i in along)
    return ids.reshape(shape).transpose([*across, *along]).reshape(-1, size)


def _part(axis: str, sizes: dict[str, int]) -> tuple[str, int, int]:
    """The name of an axis, the size of its parts before the named one, and that one's size."""
    name, _, part = axis.partition(":")
    if not part:
        return name, 1, sizes[name]
    before, _, size = part[1:].partition(")")
    return name, int(before), int(size)
