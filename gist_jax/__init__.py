"""Gisting in JAX: language models that compress prompts into a few cached gist tokens.

lm = gist_jax.load("workdir, directory or hub id")
gists = lm.compress("Say the last word two times.")
lm.generate(gists, inputs="red tiger hammer")

What a user gives and cannot be used raises a `UserError`, a ValueError whose text is one clear sentence.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from gist_jax import malloc

if TYPE_CHECKING:
    from gist_jax.errors import UserError
    from gist_jax.inference.fidelity import Fidelity
    from gist_jax.inference.gist_cache import GistCache
    from gist_jax.inference.language_model import LanguageModel
    from gist_jax.inference.library import GistLibrary
    from gist_jax.inference.load import load
    from gist_jax.inference.requests import Request, Result
    from gist_jax.interop.prefix import Prefix

# Both must happen before JAX is loaded. XLA's own lines say nothing to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
malloc.set_up()

__all__ = [
    "Fidelity",
    "GistCache",
    "GistLibrary",
    "LanguageModel",
    "Prefix",
    "Request",
    "Result",
    "UserError",
    "__version__",
    "load",
]
__version__ = "0.1.0"  # setup.py reads it here

_MODULES = {
    "Fidelity": "inference.fidelity",
    "GistCache": "inference.gist_cache",
    "GistLibrary": "inference.library",
    "LanguageModel": "inference.language_model",
    "Prefix": "interop.prefix",
    "Request": "inference.requests",
    "Result": "inference.requests",
    "UserError": "errors",
    "load": "inference.load",
}


def __getattr__(name: str) -> Any:
    # JAX takes a second to import, and what is set before that, such as its platforms, counts.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"gist_jax.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
