"""What the makers say their accelerators can do, and how long a program takes by that."""

import math
from typing import NamedTuple

from gist_jax.errors import UserError

_GIB = 2**30


class Accelerator(NamedTuple):
    """One chip, at its best."""

    flops: float  # FLOP/s of dense bfloat16 matmuls
    memory: int  # bytes
    memory_bandwidth: float  # bytes/s
    interconnect: float  # bytes/s sent over all links to other chips together, in one direction
    kinds: tuple[str, ...]  # names that JAX has for it: `device_kind`
    # bytes/s of a chip's share of the network to other nodes, in one direction; the chips of a TPU slice
    # are all connected.
    network: float = math.inf


# Memory of a GPU is what it says it has itself (cudaMemGetInfo); of a TPU it is sold in GB and is GiB.
# Nodes are NVIDIA's own, with an InfiniBand adapter for every GPU: ConnectX-6 of 200 Gbit/s
# (https://docs.nvidia.com/dgx/dgxa100-user-guide/introduction-to-dgxa100.html), ConnectX-7 of 400 Gbit/s
# (https://docs.nvidia.com/dgx-basepod/reference-architecture-infrastructure-foundation-enterprise-ai/).
# Makers add up both directions of the interconnect: here stands half of
# that. Programs reach about nine tenths of it on TPUs, says https://jax-ml.github.io/scaling-book/tpus/.
ACCELERATORS: dict[str, Accelerator] = {
    # SXM, 12 NVLinks of 25e9.
    # https://www.nvidia.com/en-us/data-center/a100/ https://jax-ml.github.io/scaling-book/gpus/
    "A100-80GB": Accelerator(
        312e12, 85_100_068_864, 2039e9, 300e9, ("NVIDIA A100-SXM4-80GB",), network=25e9
    ),
    # SXM, 18 NVLinks of 25e9. NVIDIA's first number is with sparsity, twice that of dense matmuls.
    # https://www.nvidia.com/en-us/data-center/h100/ https://jax-ml.github.io/scaling-book/gpus/
    "H100": Accelerator(
        989.4e12, 84_942_979_072, 3.35e12, 450e9, ("NVIDIA H100 80GB HBM3",), network=50e9
    ),
    # https://www.nvidia.com/en-us/data-center/h200/ https://jax-ml.github.io/scaling-book/gpus/
    "H200": Accelerator(989.4e12, int(139.8 * _GIB), 4.8e12, 450e9, ("NVIDIA H200",), network=50e9),
    # 6 links of 50e9: https://arxiv.org/abs/2304.01433, table 4.
    # https://docs.cloud.google.com/tpu/docs/v4
    "v4": Accelerator(275e12, 32 * _GIB, 1200e9, 300e9, ("TPU v4",)),
    # 4 links. https://docs.cloud.google.com/tpu/docs/v5e
    "v5e": Accelerator(197e12, 16 * _GIB, 819e9, 200e9, ("TPU v5 lite", "TPU v5e")),
    # 6 links. https://docs.cloud.google.com/tpu/docs/v5p-training
    # It has 95 GiB there, but XLA gives programs 95.74: https://jax-ml.github.io/scaling-book/tpus/
    "v5p": Accelerator(459e12, 96 * _GIB, 2765e9, 600e9, ("TPU v5", "TPU v5p")),
    # 4 links. https://docs.cloud.google.com/tpu/docs/v6e
    "v6e": Accelerator(918e12, 32 * _GIB, 1638e9, 400e9, ("TPU v6 lite", "TPU v6e")),
}


def named(device_kind: str) -> Accelerator:
    """The accelerator of a `device_kind` of JAX.

    Raises:
      UserError: if it is none of ACCELERATORS.
    """
    for accelerator in ACCELERATORS.values():
        if device_kind in accelerator.kinds:
            return accelerator
    known = ", ".join(kind for accelerator in ACCELERATORS.values() for kind in accelerator.kinds)
    raise UserError(f"nothing is known of the accelerator {device_kind!r}, only of {known}")


class Roofline(NamedTuple):
    """Seconds that each part of an accelerator is busy with a program, if it works as its maker says."""

    compute: float
    memory: float
    interconnect: float
    network: float

    @property
    def best(self) -> float:
        """Seconds of a program in which all parts work at the same time."""
        return max(self)

    @property
    def worst(self) -> float:
        """Seconds of a program in which they work one after the other."""
        return sum(self)


def roofline(
    accelerator: Accelerator, flops: float, traffic: float, sent: float, between_nodes: float = 0
) -> Roofline:
    """The roofline of a program on one chip.

    Args:
      flops: of matmuls.
      traffic: bytes read from and written to memory.
      sent: bytes sent to other chips.
      between_nodes: of these, to chips of other nodes.
    """
    return Roofline(
        flops / accelerator.flops,
        traffic / accelerator.memory_bandwidth,
        (sent - between_nodes) / accelerator.interconnect,
        between_nodes / accelerator.network,
    )
