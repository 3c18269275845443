"""Gisting in JAX: language models that compress prompts into a few cached gist tokens.

lm = gist_jax.load("workdir, directory or hub id")
gists = lm.compress(["Say the last word two times."])
lm.generate(gists, inputs=["red tiger hammer"])
"""

from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.load import load

__all__ = ["GistCache", "LanguageModel", "load"]
__version__ = "0.1.0"
