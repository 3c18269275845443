"""What several tests share. Everything compiled is cached between runs."""

import os
import pathlib
import signal
import sys

import hypothesis
import jax
import numpy as np
import pytest
import quick

import gist_jax
from gist_jax.evaluation.scores import evaluator
from gist_jax.interop.huggingface import Checkpoint
from gist_jax.models import family
from gist_jax.models.config import LlamaConfig, T5Config
from gist_jax.training.loop import train
from gist_jax.training.run import prepare

TESTS = pathlib.Path(__file__).parent

# Meshes are tested on simulated devices, even where there is a GPU, or libtpu without a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(TESTS.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("default")

# The weights are large, so that logits differ widely and the likeliest token is never a near tie.
TINY = {
    "llama": LlamaConfig(
        vocab_size=41,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_positions=512,
        initializer_range=0.3,
    ),
    "t5": T5Config(
        vocab_size=41,
        hidden_size=32,
        intermediate_size=48,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        head_dim=8,
        gated_gelu=True,
        tie_embeddings=False,
        scale_outputs=False,
        initializer_factor=1.0,
    ),
}


@pytest.fixture(scope="session", params=list(TINY))
def model_family(request):
    """Every test that depends on this, or on what is below, runs for all families."""
    return request.param


@pytest.fixture(scope="session")
def golden(model_family):
    """Results of the published implementation on the weights of `golden_model`."""
    return np.load(TESTS / "golden" / model_family / "cases.npz")


@pytest.fixture(scope="session")
def golden_model(model_family):
    """Configuration and stacked parameters."""
    checkpoint = Checkpoint(TESTS / "golden" / model_family)
    return checkpoint.config, checkpoint.load("float32")


@pytest.fixture(scope="session")
def tiny(model_family):
    """A random model: configuration and stacked parameters."""
    config = TINY[model_family]
    return config, family.init(config, jax.random.key(7))


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, model_family):
    """A trained run."""
    path = tmp_path_factory.mktemp("run")
    run = prepare(quick.get_config(model_family), path)
    train(run, evaluator(run))
    return path


@pytest.fixture(scope="session")
def lm(workdir):
    return gist_jax.load(workdir)


@pytest.fixture
def run_script(monkeypatch, capfd):
    """Runs a script of launch/ in this process; its exit code, and what it and its children printed."""

    def run(module, *arguments: str) -> tuple[int | str, str, str]:
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        code = 0
        try:
            module.main()
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
