"""Machines that are not there: their chips, as the compilers for them describe them.

libtpu knows TPU slices by name. XLA's compiler for NVIDIA GPUs, which needs no GPU, takes a description
of one; it stands here, written from what makers and XLA say.
"""

import re
from collections.abc import Sequence
from importlib import metadata

import jax
import jaxlib
from jax.experimental import topologies

from gist_jax.cost_model.devices import ACCELERATORS
from gist_jax.errors import UserError, shortened

# Shapes of slices by their names in the cloud, where v4 and v5p count cores, two a chip.
_SHAPES = {
    "v5e": {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    "v4": {
        **{8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"},
        **{512: "4x8x8", 1024: "8x8x8", 2048: "8x8x16"},
    },
}
_SHAPES |= {"v6e": _SHAPES["v5e"], "v5p": _SHAPES["v4"]}

# Fields of XLA's DeviceDescription (xla/stream_executor/device_description.proto) for SXM modules, by
# NVIDIA's tables of compute capabilities 8.0 and 9.0.
_ANY_GPU = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * 2**10,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
}
_AMPERE = {
    "core_count": 108,
    "fpus_per_core": 64,
    "clock_rate_ghz": 1.41,
    "l2_cache_size": 40 * 2**20,
    "shared_memory_per_core": 164 * 2**10,
    "shared_memory_per_block_optin": 163 * 2**10,
    "cuda_compute_capability": {"major": 8},
}
_HOPPER = {
    "core_count": 132,
    "fpus_per_core": 128,
    "clock_rate_ghz": 1.98,
    "l2_cache_size": 50 * 2**20,
    "shared_memory_per_core": 228 * 2**10,
    "shared_memory_per_block_optin": 227 * 2**10,
    "cuda_compute_capability": {"major": 9},
}
_GPUS = {"A100-80GB": _AMPERE, "H100": _HOPPER, "H200": _HOPPER}
_CUDNN = {"major": 9, "minor": 10, "patch": 0}
_GPU_NAME = re.compile(r"(?:(\d+)x)?(\d+)x(\D.*)")


def devices_of(name: str) -> Sequence[jax.Device]:
    """The chips of a machine: a TPU slice, such as "v4-32" or, by its shape, "v4:2x2x4", or GPUs, such
    as "8xH100", or "2x8xH100" for two nodes of eight.

    Raises:
      UserError: if there is no such machine, or what compiles for it is not installed.
    """
    gpus = _GPU_NAME.fullmatch(name)
    return _slice(name) if gpus is None else _gpus(int(gpus[1] or 1), int(gpus[2]), gpus[3])


def devices_per_node(devices: Sequence[jax.Device]) -> int:
    """How many chips the fastest links connect: the GPUs of a node, or all of a TPU slice."""
    if devices[0].platform != "gpu":
        return len(devices)
    return sum(device.process_index == devices[0].process_index for device in devices)


def compile_for(devices: Sequence[jax.Device], traced: jax.stages.Traced) -> jax.stages.Compiled:
    """Compiles a program for chips of `devices_of`.

    Raises:
      UserError: if what XLA calls for GPUs is not installed.
      JaxRuntimeError: if XLA refuses, as where a TPU's memory is too small. A GPU's may be.
    """
    platform = "cuda" if devices[0].platform == "gpu" else devices[0].platform
    try:
        return traced.lower(lowering_platforms=(platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        if missing := re.search(r"ptxas|libdevice", str(error)):
            raise UserError(
                f"XLA finds no {missing[0]}, which it calls for GPUs: pip install nvidia-cuda-nvcc-cu12"
            ) from None
        raise


def text_of(devices: Sequence[jax.Device], compiled: jax.stages.Compiled) -> str:
    """The text of a program compiled for such devices.

    Raises:
      UserError: if libtpu is not of the version that jax asks for, and its programs cannot be read.
    """
    try:
        text = compiled.as_text()
    except Exception as error:  # of XLA, or of protobuf
        if devices[0].platform != "tpu":
            raise
        found, wanted = _libtpu_versions()
        if f"{found}.".startswith(f"{wanted}."):
            raise
        raise UserError(
            f"libtpu {found} writes programs that jaxlib {jaxlib.__version__} cannot read: it needs "
            f"libtpu {wanted} (pip install 'gist_jax[tpu]'): {shortened(error)}"
        ) from None
    assert text is not None  # programs for TPUs and GPUs have it
    return text


def _libtpu_versions() -> tuple[str, str]:
    """The version of libtpu that is installed, and the one that jax asks for."""
    asked = [r for r in metadata.requires("jax") or () if r.startswith("libtpu")]
    found = re.search(r"==([\d.]*\d)", asked[0]) if asked else None
    return metadata.version("libtpu"), found[1] if found else "of its own"


def _slice(name: str) -> Sequence[jax.Device]:
    # A chip of v4 has two cores, which programs see as one device.
    options = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    kind, _, size = name.partition("-")
    shape = name
    if size.isdigit() and int(size) in _SHAPES.get(kind, {}):
        shape = f"{kind}:{_SHAPES[kind][int(size)]}"
    try:
        return topologies.get_topology_desc(shape, "tpu", **options).devices
    except Exception as error:  # of many kinds
        raise UserError(f"cannot describe the TPU slice {name!r}: {shortened(error)}") from None


def _gpus(nodes: int, per_node: int, kind: str) -> Sequence[jax.Device]:
    if kind not in _GPUS:
        raise UserError(f"nothing is known of the GPU {kind!r}, only of {', '.join(_GPUS)}")
    if not nodes * per_node:
        raise UserError("a topology must have at least one GPU")
    accelerator = ACCELERATORS[kind]
    described = {
        "gpu_device_info": {
            **_ANY_GPU,
            **_GPUS[kind],
            "memory_bandwidth": int(accelerator.memory_bandwidth),
            "device_memory_size": accelerator.memory,
        },
        "platform_name": "CUDA",
        "dnn_version_info": _CUDNN,
        "device_description_str": accelerator.kinds[0],
    }
    try:
        # Nodes that no NVLink connects are partitions of one host each.
        return topologies.get_topology_desc(
            f"{nodes}x{per_node}x{kind}",
            "cuda",
            target_config=_protobuf(described),
            topology=f"{nodes}x1x{per_node}",
        ).devices
    except NotImplementedError:
        packages = [f"jax-cuda12-{part}=={jax.__version__}" for part in ("plugin", "pjrt")]
        raise UserError(
            "to compile for GPUs takes XLA's compiler for them, though no GPU: pip install "
            f"{' '.join(packages)} nvidia-cuda-nvcc-cu12"
        ) from None


def _protobuf(message: dict) -> str:
    """A message in protobuf's text format."""
    lines = []
    for name, value in message.items():
        if isinstance(value, dict):
            lines.append(f"{name} {{\n{_protobuf(value)}}}\n")
        else:
            lines.append(f'{name}: "{value}"\n' if isinstance(value, str) else f"{name}: {value}\n")
    return "".join(lines)
