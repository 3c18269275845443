"""A run's programs, compiled ahead of time for TPUs and GPUs that are not there: needs and costs.

What XLA leaves open, FLOPs and the executions of loops, is counted in gist_jax.cost_model.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gist_jax.cost_model.collectives import KINDS, bytes_between_nodes, bytes_sent, collectives
from gist_jax.cost_model.devices import Roofline, named, roofline
from gist_jax.cost_model.jaxpr import matmul_flops
from gist_jax.errors import UserError
from gist_jax.inference.buckets import bucket
from gist_jax.inference.decode import first_token, next_token
from gist_jax.inference.parameters import abstract_for_inference
from gist_jax.models import registry
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params
from gist_jax.sharding import for_writing, make_mesh, named_sharding, num_shards
from gist_jax.training.program import make_program
from gist_jax.training.run import model_config
from gist_jax.training.topology import compile_for, devices_per_node, text_of

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
    preallocated: int  # of it, what JAX lets programs have by default
    tokens: int  # processed by one execution
    flops: int  # executed, those of recomputation included
    model_flops: int  # without recomputation
    bytes_sent: dict[str, int]  # by kind of collective
    bytes_between_nodes: int  # of these, to other nodes
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

    @property
    def memory_fraction(self) -> float | None:
        """What XLA_PYTHON_CLIENT_MEM_FRACTION must be for it to fit; None if it need not be set."""
        if self.excess or self.total <= self.preallocated:
            return None
        return math.ceil(100 * self.total / self.memory) / 100

    def utilisation(self, seconds: float) -> float:
        """Model FLOPs as a share of what the chips could do in that time."""
        return self.model_flops / self.flops * self.roofline.compute / seconds


# Share of a GPU's memory that JAX takes when it starts, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set:
# https://docs.jax.dev/en/latest/gpu_memory_allocation.html
_PREALLOCATED = 0.75


def compile_ahead(config: ConfigDict, devices: Sequence[jax.Device], program: str) -> Report:
    """Compiles one of PROGRAMS.

    "train" is a step of training. "prefill" reads the prompts of an evaluation's batch, and "decode"
    writes one token of each, with nothing of the training in memory.

    Args:
      devices: of `topology.devices_of`.

    Raises:
      UserError: if the config does not fit the mesh, or what compiles for the devices is not installed.
    """
    model = model_config(config)
    mesh = make_mesh(config.mesh, devices)
    accelerator, is_gpu = named(devices[0].device_kind), devices[0].platform == "gpu"
    if program != "train":  # as an evaluation does it
        mesh = for_writing(mesh, model.num_heads, model.intermediate_size)
    make = {"train": _train, "prefill": _prefill, "decode": _decode}[program]
    try:
        work = make(config, model, mesh)
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise UserError("config.attention is 'cudnn': pip install nvidia-cudnn-cu12") from None
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
    with jax.set_mesh(mesh):
        traced = work.function.trace(*work.arguments)
        try:
            compiled = compile_for(devices, traced)
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
                preallocated=memory,
                bytes_sent={},
                bytes_between_nodes=0,
                roofline=nothing,
            )
    needs: Any = compiled.memory_analysis()
    lasting = needs.argument_size_in_bytes + needs.output_size_in_bytes
    temporary = needs.temp_size_in_bytes
    found = collectives(text_of(devices, compiled), devices_per_node(devices))
    sent = {kind: sum(bytes_sent(c) * c.times for c in found if c.kind == kind) for kind in KINDS}
    between_nodes = sum(bytes_between_nodes(c) * c.times for c in found)
    traffic = lasting + 2 * temporary
    return Report(
        **described,
        activations=temporary,
        # What is donated serves the arguments and the results alike.
        total=lasting - needs.alias_size_in_bytes + temporary + needs.generated_code_size_in_bytes,
        memory=accelerator.memory,
        preallocated=int(accelerator.memory * (_PREALLOCATED if is_gpu else 1)),
        bytes_sent=sent,
        bytes_between_nodes=between_nodes,
        roofline=roofline(
            accelerator, work.flops / len(devices), traffic, sum(sent.values()), between_nodes
        ),
    )


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

    shapes = jax.eval_shape(lambda: registry.init(model, jax.random.key(0)))
    params = abstract_for_inference(shapes, config.dtype, model, mesh)
    rows = config.evaluation.batch_size
    rows += -rows % num_shards(mesh, "batch")
    shape = rows, bucket(config.evaluation.max_input_length, smallest=16)
    sharding = named_sharding(mesh, ("batch", "length"), shape)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
    return params, tokens, tokens
