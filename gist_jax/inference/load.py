"""Finding a model by a path or a hub id."""

import pathlib

from gist_jax.data.tokenization import load_tokenizer
from gist_jax.errors import UserError
from gist_jax.inference.language_model import LanguageModel
from gist_jax.interop import workdir
from gist_jax.interop.huggingface import Checkpoint, find


def load(path: str | pathlib.Path, dtype: str = "float32") -> LanguageModel:
    """Loads a model with its tokenizer.

    Args:
      path: a training workdir, a directory in Hugging Face format, or a hub id.
      dtype: of the parameters and the computation, "float32" or "bfloat16".

    Raises:
      ValueError: in one sentence, if there is no such model or it cannot be read.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype must be float32 or bfloat16, not {dtype!r}")
    directory = find(path)
    if (directory / workdir.MODEL).exists():
        config, condition, num_gist_tokens = workdir.load_model(directory)
        tokenizer = load_tokenizer(directory / workdir.TOKENIZER)
        params, _ = workdir.load_params(directory)
    elif (directory / "config.json").exists():
        checkpoint = Checkpoint(directory)
        tokenizer = load_tokenizer(directory)
        gist = checkpoint.fields.get("gist", {})
        condition = gist.get("condition", "gist")
        trained = checkpoint.has_gist_token(tokenizer.vocab_size)
        num_gist_tokens = gist.get("num_gist_tokens", 1) if trained else 0
        config, params = checkpoint.config, checkpoint.load(dtype)
    else:
        raise UserError(f"{directory} holds neither a trained run nor a Hugging Face checkpoint")
    return LanguageModel.from_params(
        params,
        config,
        tokenizer,
        num_gist_tokens=num_gist_tokens,
        condition=condition,
        dtype=dtype,
    )
