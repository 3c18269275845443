"""Checkpoints stream into place: little memory besides the arrays, and no process reads it all."""

import json
import math
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from gist_jax import sharding
from gist_jax.data.tokenization import train_bpe
from gist_jax.interop.export import write_tensors
from gist_jax.interop.huggingface import FORMATS, Checkpoint
from gist_jax.interop.weights import weights
from gist_jax.models import registry
from gist_jax.models.config import LlamaConfig
from gist_jax.training.config import default

ROOT = pathlib.Path(__file__).parent.parent


def write_model(directory, config: LlamaConfig, shard_bytes: int) -> tuple[int, int, float]:
    """A checkpoint of random float32 numbers: bytes of all tensors and of the largest; their sum."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    form, sums = FORMATS[config.family], []
    stored_shapes = {w.name: w.stored_shape for w in weights(config, form.weights(config))}
    sizes = {name: 4 * math.prod(shape) for name, shape in stored_shapes.items()}

    def random(name):
        tensor = rng.random(stored_shapes[name], np.float32)
        sums.append(tensor.sum(dtype=np.float64))
        return tensor

    write_tensors(directory, sizes, random, shard_bytes)
    (directory / "config.json").write_text(json.dumps(form.write_config(config)))
    train_bpe(["a"], 260).save(directory)
    return sum(sizes.values()), max(sizes.values()), float(sum(sums))


LOAD = """
import json, resource, sys
import jax
from gist_jax.interop.huggingface import Checkpoint
params = jax.block_until_ready(Checkpoint(sys.argv[1]).load(sys.argv[2]))
arrays = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({"peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "arrays": arrays}))
"""


@pytest.mark.slow
def test_memory_of_an_import(tmp_path):
    """The arrays, the largest tensor and a gigabyte, the program itself included."""
    config = LlamaConfig(32_000, 1024, 4096, 34, 16, 16, 64, 2048)
    total, largest, _ = write_model(tmp_path / "model", config, 1 << 29)
    assert total >= 2 << 30 and len(list((tmp_path / "model").glob("*.safetensors"))) >= 5
    for dtype, size in (("float32", total), ("bfloat16", total // 2)):
        command = [sys.executable, "-c", LOAD, str(tmp_path / "model"), dtype]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"peak {found['peak']:,}, arrays {found['arrays']:,}, largest tensor {largest:,}")
        assert found["arrays"] == size
        assert found["peak"] < found["arrays"] + largest + (1 << 30)


SHARDED = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[3]))
from gist_jax import sharding
from gist_jax.interop.huggingface import Checkpoint
from gist_jax.models import registry
from gist_jax.training.config import default
config = default()
config.mesh.update(data=1, fsdp=int(sys.argv[4]), tensor=int(sys.argv[5]))
mesh = sharding.make_mesh(config.mesh)
checkpoint = Checkpoint(sys.argv[1])
shapes = jax.eval_shape(lambda: registry.init(checkpoint.config, jax.random.key(0)))
shardings = sharding.param_shardings(mesh, registry.logical_axes(checkpoint.config), shapes)
params = checkpoint.load("float32", shardings)
total = sum(float(jax.jit(lambda x: x.sum())(x)) for x in jax.tree.leaves(params))
print(json.dumps({"read": checkpoint.tensors.bytes_read, "total": total}))
"""


@pytest.mark.parametrize(("fsdp", "tensor"), [(2, 1), (1, 2)])
def test_each_process_reads_its_half(tmp_path, fsdp, tensor):
    config = LlamaConfig(320, 64, 128, 2, 4, 4, 16, 64)
    size, _, total = write_model(tmp_path / "model", config, 1 << 16)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, *map(str, (tmp_path / "model", port, i, fsdp, tensor))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    for one in found:
        assert one["read"] == pytest.approx(size / 2, rel=0.05)
        assert one["total"] == pytest.approx(total, rel=1e-5)


def test_only_what_a_device_holds_is_read(tmp_path):
    """Eight devices of one process share each tensor, which is read once."""
    config = LlamaConfig(320, 64, 128, 2, 4, 4, 16, 64)
    size, _, _ = write_model(tmp_path / "model", config, 1 << 16)
    settings = default()
    settings.mesh.update(data=2, fsdp=2, tensor=2)
    mesh = sharding.make_mesh(settings.mesh)
    shapes = jax.eval_shape(lambda: registry.init(config, jax.random.key(0)))
    shardings = sharding.param_shardings(mesh, registry.logical_axes(config), shapes)
    checkpoint = Checkpoint(tmp_path / "model")
    params, unsharded = (
        checkpoint.load("float32", shardings),
        Checkpoint(tmp_path / "model").load("float32"),
    )
    assert checkpoint.tensors.bytes_read == size
    for ours, theirs, wanted in zip(*map(jax.tree.leaves, (params, unsharded, shardings)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.sharding == wanted
