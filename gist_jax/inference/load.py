"""Finding a model by a path or a hub id."""

from gist_jax.cli import DTYPES
from gist_jax.data.tokenization import load_tokenizer
from gist_jax.errors import UserError
from gist_jax.inference.language_model import LanguageModel
from gist_jax.interop.huggingface import Checkpoint, find
from gist_jax.io import Path
from gist_jax.workdir import MODEL, TOKENIZER, read_model, read_params


def load(path: Path, *, dtype: str = "float32") -> LanguageModel:
    """Loads a model with its tokenizer.

    Args:
      path: a training workdir, a directory in Hugging Face format, or a hub id.
      dtype: of the parameters and the computation, "float32" or "bfloat16".

    Raises:
      UserError: in one sentence, if there is no such model or it cannot be read.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype must be {' or '.join(DTYPES)}, not {dtype!r}")
    directory = find(path)
    if (directory / MODEL).exists():
        config, condition, num_gist_tokens, template = read_model(directory)
        tokenizer = load_tokenizer(directory / TOKENIZER)
        params, _ = read_params(directory)
    elif (directory / "config.json").exists():
        checkpoint = Checkpoint(directory)
        tokenizer = load_tokenizer(directory)
        condition, num_gist_tokens, template = checkpoint.gist_settings(tokenizer)
        config, params = checkpoint.config, checkpoint.load(dtype)
    else:
        raise UserError(f"{directory} holds neither a trained run nor a Hugging Face checkpoint")
    return LanguageModel.from_params(
        params,
        config,
        tokenizer,
        num_gist_tokens=num_gist_tokens,
        condition=condition,
        template=template,
        dtype=dtype,
    )
