"""What devices send each other, in programs whose traffic is known beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gist_jax.cost_model.collectives import (
    KINDS,
    Collective,
    bytes_between_nodes,
    bytes_sent,
    collectives,
)
from gist_jax.cost_model.devices import ACCELERATORS, named, roofline
from gist_jax.cost_model.replica_groups import replica_groups
from gist_jax.errors import UserError


def program(devices, function, *arguments, names=("x",), sizes=(-1,), out=None):
    """Text of `function` of one device's part, compiled for a mesh of devices.

    Args:
      arguments: shape, spec and dtype of each.
      out: the spec of the result; without it XLA splits the function itself.
    """
    mesh = Mesh(np.array(devices).reshape(sizes), names, axis_types=(AxisType.Auto,) * len(names))
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, spec, dtype in arguments
    ]
    if out is not None:
        specs = tuple(spec for _, spec, _ in arguments)
        function = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    platform = devices[0].platform
    with jax.set_mesh(mesh):
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).compile().as_text()


def found(text):
    """Without the names of loops."""
    return sorted(collective[:4] for collective in collectives(text))


def ring(n):
    return [(i, (i + 1) % n) for i in range(n)]


N = jax.device_count()
# Bytes of one device's part of a float32 array [64 N, 128].
PART = 64 * 128 * 4


@pytest.mark.parametrize(
    ("function", "size", "sent"),
    [
        (lambda x: lax.all_gather(x, "x"), N * PART, PART * (N - 1)),
        (lambda x: lax.psum(x, "x"), PART, 2 * PART * (N - 1) // N),
        (lambda x: lax.psum_scatter(x, "x", tiled=True), PART, PART * (N - 1) // N),
        (lambda x: lax.all_to_all(x, "x", 0, 0, tiled=True), PART, PART * (N - 1) // N),
        (lambda x: lax.ppermute(x, "x", ring(N)), PART, PART),
    ],
    ids=KINDS,
)
def test_each_kind(function, size, sent, request):
    text = program(jax.devices(), function, ((64 * N, 128), P("x"), jnp.float32), out=P("x"))
    (collective,) = collectives(text)
    assert collective == Collective(request.node.callspec.id, size, group_size=N, times=1, inside="")
    assert bytes_sent(collective) == sent


def test_several_arrays_at_once():
    arguments = ((64 * N, 128), P("x"), jnp.float32), ((N, 3), P("x"), jnp.float32)
    text = program(jax.devices(), lambda x, y: lax.psum((x, y), "x"), *arguments, out=P())
    assert found(text) == [("all-reduce", PART + 12, N, 1)]


def test_groups():
    """Of a mesh of two axes, and of devices named one by one."""
    x = (64 * N, 128), P(("x", "y")), jnp.float32
    mesh = dict(names=("x", "y"), sizes=(2, -1), out=P(("x", "y")))
    for axis, size in (("x", 2), ("y", N // 2), (("x", "y"), N)):
        text = program(jax.devices(), lambda x, axis=axis: lax.psum(x, axis), x, **mesh)
        assert found(text) == [("all-reduce", PART, size, 1)]
    for step in (1, 2):
        pairs = [(i, i + step) for i in range(N) if i // step % 2 == 0]
        one_by_one = [
            lambda x, pairs=pairs: lax.psum(x, "x", axis_index_groups=pairs),
            lambda x, pairs=pairs: lax.ppermute(x, "x", pairs + [(b, a) for a, b in pairs]),
        ]
        for function in one_by_one:
            text = program(jax.devices(), function, ((64 * N, 128), P("x"), jnp.float32), out=P("x"))
            assert [collective.group_size for collective in collectives(text)] == [2]


@pytest.mark.parametrize(
    ("axes", "between"),
    [
        ("x", 2 * PART // 2),  # of two devices, one a node: all that is sent
        ("y", 0),
        (("x", "y"), 2 * PART * (N - 1) // N * 2 // N),  # of a ring of N two links
    ],
)
def test_nodes(axes, between):
    """Of two nodes, which the first axis of the mesh connects."""
    x = (64 * N, 128), P(("x", "y")), jnp.float32
    mesh = dict(names=("x", "y"), sizes=(2, -1), out=P(("x", "y")))
    text = program(jax.devices(), lambda x: lax.psum(x, axes), x, **mesh)
    (collective,) = collectives(text, per_node=N // 2)
    assert collective.nodes == (1 if axes == "y" else 2)
    assert bytes_between_nodes(collective) == between


def test_a_permute_between_nodes():
    text = program(
        jax.devices(),
        lambda x: (lax.ppermute(x, "x", ring(N)), lax.ppermute(x, "x", [(0, 1), (1, 0)])),
        ((64 * N, 128), P("x"), jnp.float32),
        out=P("x"),
    )
    found = collectives(text, per_node=N // 2)
    assert sorted(bytes_between_nodes(collective) for collective in found) == [0, PART]


def test_time_between_nodes():
    times = roofline(ACCELERATORS["H100"], 0, 0, 500e9, 50e9)
    assert times == (0, 0, 1.0, 1.0)
    assert roofline(ACCELERATORS["v4"], 0, 0, 300e9) == (0, 0, 1.0, 0)


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,2,4},{1,3,5}}", [[0, 2, 4], [1, 3, 5]]),
        ("{{0}}, dimensions={0}", [[0]]),
        ("{}, to_apply=%add", [[0, 1, 2, 3, 4, 5]]),
        ("[3,2]<=[6]", [[0, 1], [2, 3], [4, 5]]),
        ("[3,2]<=[2,3]T(1,0)", [[0, 3], [1, 4], [2, 5]]),
        ("mesh['a'=2,'b'=3] {'b'}", [[0, 1, 2], [3, 4, 5]]),
        ("mesh['a'=2,'b'=3] {'a'}, dimensions={0}", [[0, 3], [1, 4], [2, 5]]),
        ("mesh['a'=2,'b'=3] {'b','a'}", [[0, 3, 1, 4, 2, 5]]),
        ("mesh['a'=2,'b'=3], device_ids=([3,2]T(1,0)) {'b'}", [[0, 2, 4], [1, 3, 5]]),
        ("mesh['a'=12] {'a':(2)3}", [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]),
        ("mesh['a'=12] {'a':(6)2,'a':(1)2}", [[0, 6, 1, 7], [2, 8, 3, 9], [4, 10, 5, 11]]),
    ],
)
def test_members_of_groups(written, groups):
    attributes = f", channel_id=1, replica_groups={written}, use_global_device_ids=true"
    np.testing.assert_array_equal(replica_groups(attributes, 6), groups)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,2,4},{1,3,5}}", 3),
        ("{{0}}", 1),
        ("{}", 6),
        ("[3,2]<=[6]", 2),
        ("[2,3]<=[3,2]T(1,0)", 3),
        ("mesh['axis_0'=2,'axis_1'=3] {'axis_1'}", 3),
        ("mesh['axis_0'=2,'axis_1'=3], device_ids=([3,2]T(1,0)) {'axis_0','axis_1'}", 6),
        ("mesh['a'=12] {'a':(2)3}", 3),
    ],
)
def test_notations_of_groups(groups, size):
    text = f"""HloModule step, num_partitions=6

ENTRY %main (x: bf16[5]) -> bf16[5] {{
  ROOT %y = bf16[5]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add
}}"""
    assert collectives(text) == [Collective("all-reduce", 10, size, 1, "")]


def nested(x):
    def inner(x, _):
        return lax.psum(x, "x") * 0.1, None

    def outer(x, _):
        x = lax.scan(inner, x, length=3)[0]
        return x + lax.all_gather(x, "x").sum(0), None

    return lax.scan(outer, lax.ppermute(x, "x", ring(lax.axis_size("x"))), length=5)[0]


def test_loops():
    text = program(jax.devices(), nested, ((64 * N, 128), P("x"), jnp.float32), out=P("x"))
    assert found(text) == [
        ("all-gather", N * PART, N, 5),
        ("all-reduce", PART, N, 15),
        ("collective-permute", PART, N, 1),
    ]
    inside = {collective.kind: collective.inside for collective in collectives(text)}
    assert inside["collective-permute"] == ""
    assert inside["all-reduce"] != inside["all-gather"]
    assert all(f"body=%{inside[kind]}," in text for kind in ("all-reduce", "all-gather"))


def until(condition, step):
    def function(x):
        def body(carry):
            return carry[0] + step, lax.psum(carry[1], "x")

        return lax.while_loop(condition, body, (jnp.int32(1), x))[1]

    return function


def test_a_loop_of_unknown_length_is_an_error():
    x = (64 * N, 128), P("x"), jnp.float32
    text = program(jax.devices(), until(lambda c: c[1][0, 0] < 9, 1), x, out=P("x"))
    with pytest.raises(ValueError, match="loop while.* does not show its trip count"):
        collectives(text)


def test_it_matters_only_with_collectives_in_it():
    def function(x):
        x = lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x * 2, x)
        return lax.psum(x, "x")

    text = program(jax.devices(), function, ((64 * N, 128), P("x"), jnp.float32), out=P("x"))
    assert found(text) == [("all-reduce", PART, N, 1)]


def test_asynchronous_collectives():
    """They start in one operation and are done in another, as on GPUs."""
    text = """HloModule step, is_scheduled=true, num_partitions=4

%reduce (a: f32[8]) -> f32[2] {
  ROOT %part = f32[2]{0} reduce-scatter(%a), replica_groups={}, dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[2], y: f32[8]) -> f32[8] {
  %g = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %s = ((f32[8]{0}), f32[2]{0}) async-start(%y), calls=%reduce
  %r = ((f32[8]{0}), f32[4]{0}) reduce-scatter-start(%y), replica_groups=[2,2]<=[4], dimensions={0}
  %u = ((f32[8]{0}), f32[4]{0}) reduce-scatter-update(%r)
  %v = f32[4]{0} reduce-scatter-done(%u)
  %t = f32[2]{0} async-done(%s), calls=%reduce
  %a = (f32[8]{0}, s8[3]{0}) all-reduce-start(%y, %z), replica_groups={}, to_apply=%add
  %b = (f32[8]{0}, s8[3]{0}) all-reduce-done(%a)
  ROOT %h = f32[8]{0} all-gather-done(%g)
}"""
    assert found(text) == [
        ("all-gather", 32, 4, 1),
        ("all-reduce", 35, 4, 1),
        ("reduce-scatter", 32, 2, 1),
        ("reduce-scatter", 32, 4, 1),
    ]


@pytest.fixture(scope="module")
def tpu():
    """Devices of a topology that is not there."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    # What was compiled for a TPU cannot be read from the cache without one.
    kept_after = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # there is none to ask what it is
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # in several processes, which only compile
        yield lambda name: topologies.get_topology_desc(name, "tpu").devices
    jax.config.update("jax_persistent_cache_min_compile_time_secs", kept_after)


def test_tpu_loops(tpu):
    """Nothing is noted beside a loop, which may start anywhere and take steps of any length."""
    x = (512, 128), P("x"), jnp.float32
    devices = tpu("v5e:2x4")
    assert found(program(devices, nested, x, out=P("x"))) == [
        ("all-gather", 8 * PART, 8, 5),
        ("all-reduce", PART, 8, 15),
        ("collective-permute", PART, 8, 1),
    ]
    text = program(devices, until(lambda c: c[0] < 8, 2), x, out=P("x"))
    assert found(text) == [("all-reduce", PART, 8, 4)]
    text = program(devices, until(lambda c: c[1][0, 0] < 9, 1), x, out=P("x"))
    with pytest.raises(ValueError, match="loop while.* does not show its trip count"):
        collectives(text)


def test_tpu_matmuls_in_parts(tpu):
    """Of a sum over 8 devices XLA computes two parts an iteration, and sends them on: 9 for 8."""

    def split(x, w):
        return lax.with_sharding_constraint(x.T @ w, P("x"))

    arguments = [((8192, size), P("x"), jnp.bfloat16) for size in (2048, 4096)]
    part = 256 * 4096 * 2
    sent = collectives(program(tpu("v5e:2x4"), split, *arguments))
    assert {collective[:3] for collective in sent} == {("collective-permute", part, 8)}
    assert sum(collective.times for collective in sent) == 9


def test_tpu_reduce_scatter(tpu):
    """Written as an all-reduce in a fusion, of which each device takes a slice."""

    def split(x, v, w):
        return [lax.with_sharding_constraint(x.T @ y, P("x")) for y in (v, w)]

    arguments = [((8192, size), P("x"), jnp.bfloat16) for size in (2048, 4096, 1024)]
    text = program(tpu("v6e:2x4"), split, *arguments)
    assert "all-reduce-scatter" in text
    assert found(text) == [
        ("reduce-scatter", 2048 * 1024 * 2, 8, 1),
        ("reduce-scatter", 2048 * 4096 * 2, 8, 1),
    ]


def test_tpu_overlap(tpu):
    """An all-gather that runs during three matmuls stands in the text five times."""

    def run(x, there, elsewhere):
        def body(x, w):
            gathered = lax.all_gather(w[1], "x", tiled=True)
            for kernel in (w[0], w[0], w[0], gathered):
                x = jnp.tanh(x @ kernel)
            return x, None

        return lax.scan(body, x, (there, elsewhere))[0]

    specs = P("x"), P(), P(None, "x")
    shapes = (8192, 2048), (5, 2048, 2048), (5, 2048, 2048)
    arguments = zip(shapes, specs, [jnp.bfloat16] * 3, strict=True)
    text = program(tpu("v5e:2x4"), run, *arguments, out=P("x"))
    assert text.count(" all-gather(") > 1
    assert found(text) == [("all-gather", 2048 * 2048 * 2, 8, 5)]


def test_accelerators():
    assert named("TPU v5 lite") is ACCELERATORS["v5e"]
    assert named("NVIDIA H200") is ACCELERATORS["H200"]
    with pytest.raises(UserError, match="'cpu', only of NVIDIA A100"):
        named("cpu")
    for accelerator in ACCELERATORS.values():
        # Each is right to a factor of 10, and a matmul is bound by arithmetic sooner than by memory,
        # by memory sooner than by the interconnect.
        assert 1e14 < accelerator.flops < 1e15
        assert 1e10 < accelerator.memory < 1e12
        assert 100 < accelerator.flops / accelerator.memory_bandwidth < 1000
        assert 2 < accelerator.memory_bandwidth / accelerator.interconnect < 20
