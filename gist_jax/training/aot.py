"""A run's programs, compiled ahead of time for TPUs that are not there: what they need and cost.

The topology is described by libtpu, which compiles without a TPU. What XLA leaves open, the executions
of loops, is counted in gist_jax.cost_model.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gist_jax.cost_model.collectives import KINDS, bytes_sent, collectives
from gist_jax.cost_model.devices import Roofline, named, roofline
from gist_jax.cost_model.jaxpr import matmul_flops
from gist_jax.errors import UserError, shortened
from gist_jax.inference.buckets import bucket
from gist_jax.inference.decode import first_token, next_token
from gist_jax.models import registry
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params, unstacked
from gist_jax.sharding import make_mesh, named_sharding, num_shards, param_shardings, with_shardings
from gist_jax.training.program import make_program
from gist_jax.training.run import model_config

PROGRAMS = ("train", "prefill", "decode")


class Report(NamedTuple):
    """What one program needs and costs: bytes of one chip, and FLOPs of matmuls on all chips."""

    program: str
    mesh: dict[str, int]  # chips along each axis
    parameters: int  # bytes
    frozen: int  # of an adapter's base, or of a teacher
    optimizer: int
    cache: int
    activations: int  # all that is temporary: gradients and gathered parameters too
    total: int
    memory: int  # of a chip, or what XLA would give a program that does not fit
    tokens: int  # processed by one execution
    flops: int  # executed, those of recomputation included
    model_flops: int  # without recomputation
    bytes_sent: dict[str, int]  # by kind of collective
    # Memory is counted for arguments and results once, and for temporary arrays written and read once: a
    # lower bound.
    roofline: Roofline

    @property
    def chips(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def excess(self) -> int:
        """Bytes that are too many."""
        return max(0, self.total - self.memory)

    def utilisation(self, seconds: float) -> float:
        """Model FLOPs as a share of what the chips could do in that time."""
        return self.model_flops / self.flops * self.roofline.compute / seconds


# Shapes of slices by their names in the cloud, where v4 and v5p count cores, two a chip.
_SHAPES = {
    "v5e": {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    "v4": {
        **{8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"},
        **{512: "4x8x8", 1024: "8x8x8", 2048: "8x8x16"},
    },
}
_SHAPES |= {"v6e": _SHAPES["v5e"], "v5p": _SHAPES["v4"]}


def slice_of(topology: str) -> Sequence[jax.Device]:
    """The chips of a TPU slice, such as "v4-32" or, by its shape, "v4:2x2x4".

    Raises:
      UserError: if libtpu is missing, or knows of no such slice.
    """
    # A chip of v4 has two cores, which programs see as one device.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    kind, _, size = topology.partition("-")
    if size.isdigit() and int(size) in _SHAPES.get(kind, {}):
        topology = f"{kind}:{_SHAPES[kind][int(size)]}"
    try:
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:  # of many kinds
        raise UserError(f"cannot describe the TPU slice {topology!r}: {shortened(error)}") from None


def compile_ahead(config: ConfigDict, devices: Sequence[jax.Device], program: str) -> Report:
    """Compiles one of PROGRAMS.

    "train" is a step of training. "prefill" reads the prompts of an evaluation's batch, and "decode"
    writes one token of each, with nothing of the training in memory.

    Raises:
      UserError: if the config does not fit the mesh.
    """
    model = model_config(config)
    mesh = make_mesh(config.mesh, devices)
    make = {"train": _train, "prefill": _prefill, "decode": _decode}[program]
    work = make(config, model, mesh)
    with jax.set_mesh(mesh):
        lowered = work.function.trace(*work.arguments).lower(lowering_platforms=("tpu",))
        accelerator = named(devices[0].device_kind)
        described: dict[str, Any] = dict(
            program=program,
            mesh=dict(mesh.shape),
            parameters=_bytes_of_one(work.parameters),
            frozen=_bytes_of_one(work.frozen),
            optimizer=_bytes_of_one(work.optimizer),
            cache=_bytes_of_one(work.cache),
            tokens=work.tokens,
            flops=work.flops,
            model_flops=work.model_flops,
        )
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            # The arguments are among what it calls temporaries.
            needed = re.search(r"temporaries \(([\d.]+)G\) exceeds .* \(([\d.]+)G\)", str(error))
            if needed is None:
                raise
            total, memory = (int(float(size) * 2**30) for size in needed.groups())
            lasting = ("parameters", "frozen", "optimizer", "cache")
            activations = total - sum(described[name] for name in lasting)
            nothing = roofline(accelerator, work.flops / len(devices), 0, 0)
            return Report(
                **described,
                activations=activations,
                total=total,
                memory=memory,
                bytes_sent={},
                roofline=nothing,
            )
    needs = compiled.memory_analysis()
    lasting = needs.argument_size_in_bytes + needs.output_size_in_bytes
    temporary = needs.temp_size_in_bytes
    found = collectives(_text(compiled))
    sent = {kind: sum(bytes_sent(c) * c.times for c in found if c.kind == kind) for kind in KINDS}
    return Report(
        **described,
        activations=temporary,
        # What is donated serves the arguments and the results alike.
        total=lasting - needs.alias_size_in_bytes + temporary + needs.generated_code_size_in_bytes,
        memory=accelerator.memory,
        bytes_sent=sent,
        roofline=roofline(
            accelerator, work.flops / len(devices), lasting + 2 * temporary, sum(sent.values())
        ),
    )


def _text(compiled: jax.stages.Compiled) -> str:
    """The text of a compiled program.

    Raises:
      UserError: if libtpu is not of the version that jax asks for, and its programs cannot be read.
    """
    try:
        text = compiled.as_text()
    except Exception as error:  # of XLA, or of protobuf
        found, wanted = _libtpu_versions()
        if f"{found}.".startswith(f"{wanted}."):
            raise
        raise UserError(
            f"libtpu {found} writes programs that jaxlib {jaxlib.__version__} cannot read: it needs "
            f"libtpu {wanted} (pip install 'gist_jax[tpu]'): {shortened(error)}"
        ) from None
    assert text is not None  # programs for TPUs have it
    return text


def _libtpu_versions() -> tuple[str, str]:
    """The version of libtpu that is installed, and the one that jax asks for."""
    asked = [r for r in metadata.requires("jax") or () if r.startswith("libtpu")]
    found = re.search(r"==([\d.]*\d)", asked[0]) if asked else None
    return metadata.version("libtpu"), found[1] if found else "of its own"


class _Work(NamedTuple):
    """A function to compile, and what is known of it before."""

    function: Any
    arguments: tuple
    parameters: Any = ()
    frozen: Any = ()
    optimizer: Any = ()
    cache: Any = ()
    tokens: int = 0
    flops: int = 0
    model_flops: int = 0


def _bytes_of_one(tree: Any) -> int:
    """Bytes that one chip holds of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _flops(mesh: Mesh, function: Callable[..., Any], arguments: Sequence[Any]) -> int:
    """FLOPs of a program's matmuls, traced for the chips of a mesh: a CPU's might be others."""
    with jax.set_mesh(mesh):
        return matmul_flops(function, *arguments)


def _train(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> _Work:
    gist_token = model.vocab_size - 1
    program = make_program(config, model, gist_token, mesh)
    arguments = program.state, program.batch, program.frozen
    plain = config.copy_and_resolve_references()
    plain.update(remat="none", attention="xla")
    plain = make_program(plain, model, gist_token, mesh)
    return _Work(
        program.step,
        arguments,
        parameters=program.state.params,
        frozen=program.frozen,
        optimizer=program.state.opt_state,
        tokens=sum(math.prod(program.batch[n].shape) for n in program.batch if n.endswith("tokens")),
        flops=_flops(mesh, program.step, arguments),
        model_flops=_flops(mesh, plain.step, arguments),
    )


def _prefill(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> _Work:
    params, tokens, segment = _prompts(config, model, mesh)
    max_new = bucket(config.evaluation.max_new_tokens, smallest=16)
    settings: dict[str, Any] = dict(
        condition=config.condition, gist_token=model.vocab_size - 1, max_new=max_new
    )
    function = jax.jit(functools.partial(first_token, config=model, **settings))
    arguments = params, tokens, segment, None
    flops = _flops(mesh, function, arguments)
    return _Work(
        function,
        arguments,
        parameters=params,
        tokens=math.prod(tokens.shape),
        flops=flops,
        model_flops=flops,
    )


def _decode(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> _Work:
    before = _prefill(config, model, mesh)
    params, tokens, *_ = before.arguments

    def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = ("batch", "length", "hidden", "hidden")[: x.ndim]
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=named_sharding(mesh, axes, x.shape))

    prefilled, state, token = jax.eval_shape(before.function, *before.arguments)
    prefilled = prefilled._replace(
        hidden=placed(prefilled.hidden),
        context=tuple(cache.with_shardings(mesh) for cache in prefilled.context),
        visible=placed(prefilled.visible),
    )
    state = jax.tree.map(placed, state._replace(cache=()))._replace(
        cache=state.cache.with_shardings(mesh)
    )
    function = jax.jit(functools.partial(next_token, config=model), donate_argnums=2)
    arguments = params, prefilled, state, placed(token)
    flops = _flops(mesh, function, arguments)
    return _Work(
        function,
        arguments,
        parameters=params,
        cache=(prefilled.context, state.cache),
        tokens=tokens.shape[0],
        flops=flops,
        model_flops=flops,
    )


def _prompts(
    config: ConfigDict, model: ModelConfig, mesh: Mesh
) -> tuple[Params, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Parameters, and tokens and segment of a batch of prompts, as an evaluation has them."""

    def stacked() -> Params:
        params = registry.init(model, jax.random.key(0), jnp.dtype(config.dtype))
        return unstacked(params)

    shapes = jax.eval_shape(stacked)
    axes = registry.logical_axes(model, stacked=False)
    params = with_shardings(shapes, param_shardings(mesh, axes, shapes))
    rows = config.evaluation.batch_size
    rows += -rows % num_shards(mesh, "batch")
    shape = rows, bucket(config.evaluation.max_input_length, smallest=16)
    sharding = named_sharding(mesh, ("batch", "length"), shape)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
    return params, tokens, tokens
