"""Programs of a config, compiled for TPUs that are not there: what they need, and what they cost.

The topology is described by libtpu, which compiles without a TPU. What XLA leaves open, the executions
of loops, is counted in `collectives` and `matmul`.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from gist_jax.benchmark import programs
from gist_jax.benchmark.collectives import KINDS, collectives, moved
from gist_jax.benchmark.devices import named
from gist_jax.benchmark.matmul import matmul_flops
from gist_jax.benchmark.roofline import Roofline, roofline
from gist_jax.errors import UserError
from gist_jax.inference.buckets import bucket
from gist_jax.models import family
from gist_jax.models.axes import spec, ways
from gist_jax.models.cache import AXES
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import unstacked
from gist_jax.training import sharding
from gist_jax.training.program import make_program
from gist_jax.training.run import model_config

PROGRAMS = ("train", "prefill", "decode")


class Report(NamedTuple):
    """Of one program. Bytes are those of one chip; FLOPs are those of matrix products on all chips."""

    program: str
    mesh: dict[str, int]  # chips along each axis
    parameters: int  # bytes
    optimizer: int
    cache: int
    activations: int  # all that is temporary: gradients and gathered parameters too
    total: int
    memory: int  # of a chip, or what XLA would give a program that does not fit
    tokens: int  # processed by one execution
    flops: int  # executed, those of recomputation included
    model_flops: int  # without recomputation
    moved: dict[str, int]  # bytes sent, by kind of collective
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
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot describe the TPU slice {topology!r}: {reason}") from None


def compile_ahead(config: ConfigDict, devices: Sequence[jax.Device], program: str) -> Report:
    """Compiles one of PROGRAMS.

    "train" is a step of training. "prefill" reads the prompts of an evaluation's batch, and "decode"
    writes one token of each, with nothing of the training in memory.

    Raises:
      UserError: if the config does not fit the mesh.
    """
    model = model_config(config)
    mesh = sharding.make_mesh(config, devices)
    make = {"train": _train, "prefill": _prefill, "decode": _decode}[program]
    work = make(config, model, mesh)
    with jax.set_mesh(mesh):
        lowered = work.function.trace(*work.arguments).lower(lowering_platforms=("tpu",))
        accelerator = named(devices[0].device_kind)
        described = dict(
            program=program,
            mesh=dict(mesh.shape),
            parameters=_bytes_of_one(work.parameters),
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
            activations = total - sum(described[k] for k in ("parameters", "optimizer", "cache"))
            nothing = roofline(accelerator, work.flops / len(devices), 0, 0)
            return Report(
                **described,
                activations=activations,
                total=total,
                memory=memory,
                moved={},
                roofline=nothing,
            )
    needs = compiled.memory_analysis()
    lasting = needs.argument_size_in_bytes + needs.output_size_in_bytes
    temporary = needs.temp_size_in_bytes
    found = collectives(compiled.as_text())
    sent = {kind: sum(moved(c) * c.times for c in found if c.kind == kind) for kind in KINDS}
    return Report(
        **described,
        activations=temporary,
        # What is donated serves the arguments and the results alike.
        total=lasting - needs.alias_size_in_bytes + temporary + needs.generated_code_size_in_bytes,
        memory=accelerator.memory,
        moved=sent,
        roofline=roofline(
            accelerator, work.flops / len(devices), lasting + 2 * temporary, sum(sent.values())
        ),
    )


class _Work(NamedTuple):
    """A function to compile, and what is known of it before."""

    function: Any
    arguments: tuple
    parameters: Any = ()
    optimizer: Any = ()
    cache: Any = ()
    tokens: int = 0
    flops: int = 0
    model_flops: int = 0


def _bytes_of_one(tree) -> int:
    """Of what one chip holds of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _train(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> _Work:
    gist_token = model.vocab_size - 1
    program = make_program(config, model, gist_token, mesh)
    arguments = program.state, program.batch
    plain = config.copy_and_resolve_references()
    plain.remat = "none"
    plain = make_program(plain, model, gist_token, mesh)
    return _Work(
        program.step,
        arguments,
        parameters=program.state.params,
        optimizer=program.state.optimizer,
        tokens=sum(math.prod(program.batch[n].shape) for n in program.batch if n.endswith("tokens")),
        flops=matmul_flops(program.step, *arguments),
        model_flops=matmul_flops(plain.step, *arguments),
    )


def _prefill(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> _Work:
    params, tokens, segment = _prompts(config, model, mesh)
    max_new = bucket(config.evaluation.max_new_tokens, smallest=16)
    settings = dict(condition=config.condition, gist_token=model.vocab_size - 1, max_new=max_new)
    function = jax.jit(functools.partial(programs.first_token, config=model, **settings))
    arguments = params, tokens, segment, None
    flops = matmul_flops(function, *arguments)
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

    def placed(x: jax.ShapeDtypeStruct, names=None) -> jax.ShapeDtypeStruct:
        names = names or (AXES if x.ndim == 4 else ("batch", "length", "hidden")[: x.ndim])
        on = NamedSharding(mesh, spec(mesh, names, x.shape))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on)

    def of_cache(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return placed(x, AXES[-x.ndim :])  # of one row it has no batch

    prompt, token = jax.tree.map(placed, jax.eval_shape(before.function, *before.arguments))

    function = jax.jit(functools.partial(programs.next_token, config=model), donate_argnums=2)
    prompt, cache = programs.apart(prompt)
    cache = jax.tree.map(of_cache, cache)
    arguments = params, prompt, cache, token, jax.ShapeDtypeStruct((), jnp.int32)
    flops = matmul_flops(function, *arguments)
    return _Work(
        function,
        arguments,
        parameters=params,
        cache=(prompt.context, cache),
        tokens=tokens.shape[0],
        flops=flops,
        model_flops=flops,
    )


def _prompts(config: ConfigDict, model: ModelConfig, mesh: Mesh):
    """Parameters and a batch of prompts, as an evaluation has them."""

    def stacked():
        params = family.init(model, jax.random.key(0), jnp.dtype(config.dtype))
        return unstacked(params)

    shapes = jax.eval_shape(stacked)
    on = sharding.param_shardings(mesh, family.logical_axes(model, stacked=False), shapes)
    params = sharding.placed(shapes, on)
    rows = config.evaluation.batch_size
    rows += -rows % ways(mesh, "batch")
    shape = rows, bucket(config.evaluation.max_input_length, smallest=16)
    rows_on = NamedSharding(mesh, spec(mesh, ("batch", "length"), shape))
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows_on)
    return params, tokens, tokens
