"""Programs compiled for NVIDIA GPUs that are not there."""

import importlib.util
import json
import re
from types import SimpleNamespace

import jax
import pytest
from ahead import check_split_decoding, compile_ahead, reports_in

from gist_jax.errors import UserError
from gist_jax.training.topology import compile_for, devices_of

HAS_COMPILER = any(importlib.util.find_spec(f"jax_cuda{v}_plugin") is not None for v in (12, 13))
needs_compiler = pytest.mark.skipif(
    not HAS_COMPILER, reason="needs jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12"
)
SHAPE = ("--config=tests/helpers/quick.py", "--config.model.hidden_size=64", "--config.mesh.data=1")
# Counted by hand: D 64, F 24, two layers, two heads of 8, 64 tokens in the vocabulary.
LAYERS, HEAD, NORMS = 2 * (4 * 64 * 16 + 3 * 64 * 24), 64 * 64, 5 * 64


@needs_compiler
def test_what_a_small_model_needs(tmp_path):
    output = tmp_path / "reports.json"
    mesh = "--config.mesh.fsdp=4", "--config.mesh.tensor=2", "--config.model.vocab_size=64"
    done = compile_ahead(*SHAPE, *mesh, "--topology=8xH100", f"--output={output}")
    assert done.returncode == 0, done.stderr
    found = reports_in(output)
    assert list(found) == ["train", "prefill", "decode"]
    train, prefill, decode = found.values()
    assert train["parameters"] == 4 * ((LAYERS + 2 * HEAD) // 8 + NORMS)
    assert train["optimizer"] == 2 * train["parameters"] + 2 * 4  # and two counters
    assert decode["cache"] == 4 * 2 * 2 * 64 * 16 * (48 + 16) // 8  # of 64 rows
    attention = 2 * 4 * 16  # FLOPs for a query and a key
    assert train["model_flops"] == 3 * 8 * 48 * (2 * (LAYERS + HEAD) + 48 * attention)
    assert decode["flops"] == 64 * (2 * (LAYERS + HEAD) + (48 + 16) * attention)
    # Of the part that a device has of the heads, three quarters of the layers' parameters.
    assert train["bytes_sent"]["all-gather"] >= 4 * LAYERS // 2 * 3 // 4
    for report in found.values():
        kept = report["parameters"] + report["optimizer"] + report["cache"]
        assert kept < report["total"] < kept + 2 * report["activations"] + 2**23
        assert report["memory"] == 84_942_979_072 and report["preallocated"] == report["memory"] * 3 // 4
        assert report["bytes_between_nodes"] == 0
        low, high = report["seconds"]
        assert 0 < low <= high <= 4 * low
    assert "decode on 8xH100: 8 chips (data 4, fsdp 1, tensor 2)" in done.stdout


@needs_compiler
def test_decoding_on_several_gpus(tmp_path):
    check_split_decoding("8xH100", tmp_path / "reports.json")


@needs_compiler
def test_nodes(tmp_path):
    """Rows are split over two nodes: the gradients, a half on each GPU, are summed between them."""
    output = tmp_path / "reports.json"
    mesh = "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.model.vocab_size=64"
    topologies = "--topology=2x2xA100-80GB,4xA100-80GB", "--programs=train"
    done = compile_ahead(*SHAPE, *mesh, *topologies, f"--output={output}")
    assert done.returncode == 0, done.stderr
    of_nodes, of_one = json.loads(output.read_text())
    assert of_nodes["bytes_sent"] == of_one["bytes_sent"]
    gradients = 4 * ((LAYERS + 2 * HEAD) // 2 + NORMS)
    assert gradients <= of_nodes["bytes_between_nodes"] <= 1.1 * gradients
    assert of_one["bytes_between_nodes"] == 0
    assert of_nodes["roofline"]["network"] == of_nodes["bytes_between_nodes"] / 25e9
    assert re.search(r"\| train \| 2x2xA100-80GB \| 4 \| 2×2×1 \|", done.stdout)


@needs_compiler
def test_memory():
    """XLA compiles what does not fit: here two tables of 256 numbers for every token."""

    def of(entries: int):
        sizes = "--config.model.hidden_size=256", "--config.evaluation.batch_size=8"
        program = "--topology=1xA100-80GB", "--programs=decode", f"--config.model.vocab_size={entries}"
        return compile_ahead(*SHAPE, *sizes, *program)

    done, refused = of(33_000_000), of(45_000_000)
    assert done.returncode == 0, done.stderr
    assert "set XLA_PYTHON_CLIENT_MEM_FRACTION=0.81: by default JAX takes 59.44 GiB" in done.stdout
    assert refused.returncode == 1
    sentence = r"decode on 1xA100-80GB needs 87.\d GiB a chip, 7.\d GiB more than the 79.26 GiB there"
    assert re.search(sentence, refused.stderr.splitlines()[-1])


@pytest.mark.skipif(HAS_COMPILER, reason="is for an environment without XLA's compiler for GPUs")
def test_a_missing_compiler():
    done = compile_ahead(*SHAPE, "--config.model.vocab_size=64", "--topology=8xH100")
    assert done.returncode == 1
    packages = f"jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__}"
    assert f"pip install {packages} nvidia-cuda-nvcc-cu12" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_missing_assembler():
    def lower(**_):
        raise jax.errors.JaxRuntimeError("NOT_FOUND: Couldn't find a suitable version of ptxas")

    devices, traced = [SimpleNamespace(platform="gpu")], SimpleNamespace(lower=lower)
    with pytest.raises(UserError, match="XLA finds no ptxas, .*: pip install nvidia-cuda-nvcc-cu12"):
        compile_for(devices, traced)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("8xB200", "nothing is known of the GPU 'B200', only of A100-80GB, H100, H200"),
        ("0xH100", "must have at least one GPU"),
        ("2x0xH100", "must have at least one GPU"),
    ],
)
def test_mistakes(name, sentence):
    with pytest.raises(UserError, match=sentence):
        devices_of(name)
