"""What several tests share. Everything compiled is cached between runs."""

import pathlib

import hypothesis
import jax
import numpy as np
import pytest

from gist_jax.interop.huggingface import Checkpoint
from gist_jax.models import llama
from gist_jax.models.config import LlamaConfig

TESTS = pathlib.Path(__file__).parent

# Meshes are tested on simulated devices.
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_compilation_cache_dir", str(TESTS.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="session")
def golden():
    """Results of the published implementation on the weights of `golden_model`."""
    return np.load(TESTS / "golden" / "llama" / "cases.npz")


@pytest.fixture(scope="session")
def golden_model():
    """Configuration and stacked parameters."""
    checkpoint = Checkpoint(TESTS / "golden" / "llama")
    return checkpoint.config, jax.tree.map(jax.numpy.asarray, checkpoint.read())


@pytest.fixture(scope="session")
def tiny():
    """A random model with grouped-query attention: configuration and stacked parameters.

    The weights are large, so that logits differ widely and the likeliest token is never a near tie.
    """
    config = LlamaConfig(
        vocab_size=41,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_positions=512,
        initializer_range=0.3,
    )
    return config, llama.init(config, jax.random.key(7))
