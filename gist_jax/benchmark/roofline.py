"""How long a program takes at best, and at worst if nothing of it overlaps."""

from typing import NamedTuple

from gist_jax.benchmark.devices import Accelerator


class Roofline(NamedTuple):
    """Seconds that each part of an accelerator is busy, if it works as its maker says."""

    compute: float
    memory: float
    interconnect: float

    @property
    def best(self) -> float:
        """All parts at the same time."""
        return max(self)

    @property
    def worst(self) -> float:
        """One after the other."""
        return sum(self)


def roofline(accelerator: Accelerator, flops: float, traffic: float, moved: float) -> Roofline:
    """Of a program on one chip.

    Args:
      flops: of matrix products.
      traffic: bytes read from and written to memory.
      moved: bytes sent to other chips.
    """
    return Roofline(
        flops / accelerator.flops,
        traffic / accelerator.memory_bandwidth,
        moved / accelerator.interconnect,
    )
