"""The embedded instruction corpus: generated on the fly, small enough to learn in minutes."""

from gist_jax.data.instructions.corpus import (
    SPLITS,
    Corpus,
    is_validation_pair,
    load_tokenizer,
)
from gist_jax.data.instructions.families import FAMILIES
from gist_jax.data.instructions.family import Family

__all__ = ["FAMILIES", "SPLITS", "Corpus", "Family", "is_validation_pair", "load_tokenizer"]
