"""Writes a model as a directory in Hugging Face format, which transformers loads as it stands."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from gist_jax.data.tokenization import Tokenizer
from gist_jax.errors import UserError
from gist_jax.files import whole_directory, write_json
from gist_jax.interop.huggingface import format_of
from gist_jax.interop.weights import Weight, weights
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params

DTYPES = ("float32", "bfloat16", "float16")


def export(
    directory: str | pathlib.Path,
    params: Params,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    num_gist_tokens: int,
    condition: str,
    dtype: str = "float32",
    shard_bytes: int = 2 << 30,
) -> None:
    """Writes config.json, generation_config.json, safetensors with an index, and the tokenizer.

    Args:
      directory: appears whole or not at all.
      params: with layers stacked or apart; fetched from their devices one tensor at a time.
      dtype: one of DTYPES.
      shard_bytes: of a file, at most; a single larger tensor has one of its own.

    Raises:
      UserError: if the directory exists, or the dtype is none of these.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    with whole_directory(directory) as beside:
        form = format_of(config)
        special = _special_ids(config, tokenizer)
        fields = {**form.write_config(config), **special, "torch_dtype": dtype}
        if num_gist_tokens > 0:  # else the model was never trained with a gist token
            fields["gist"] = {
                "num_gist_tokens": num_gist_tokens,
                "gist_token_id": tokenizer.gist_id,
                "condition": condition,
            }
        write_json(beside / "config.json", fields)
        write_json(beside / "generation_config.json", special)
        tokenizer.save(beside)
        write_tensors(
            beside,
            ((w.name, w.stored_shape, w) for w in weights(config, form.weights(config))),
            lambda weight: _stored(params, weight, dtype),
            np.dtype(jnp.dtype(dtype)).itemsize,
            shard_bytes,
        )


def write_tensors(directory: pathlib.Path, planned, value_of, itemsize: int, shard_bytes: int) -> None:
    """Writes tensors as safetensors, in several files with an index if one would be too large.

    Args:
      planned: for each tensor its name, its shape and what `value_of` makes its array of.
      itemsize: bytes of a number.
    """
    shards, size = [[]], 0
    for name, shape, source in planned:
        nbytes = math.prod(shape) * itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, source))
        size += nbytes
    total, weight_map = 0, {}
    with tqdm(total=sum(map(len, shards)), desc="writing weights", unit="tensor", leave=False) as bar:
        for i, shard in enumerate(shards, 1):
            many = f"model-{i:05}-of-{len(shards):05}.safetensors"
            file = "model.safetensors" if len(shards) == 1 else many
            tensors = {}
            for name, source in shard:
                tensors[name] = np.ascontiguousarray(value_of(source))
                weight_map[name] = file
                bar.update(1)
            total += sum(tensor.nbytes for tensor in tensors.values())
            save_file(tensors, directory / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)


def _stored(params: Params, weight: Weight, dtype: str) -> np.ndarray:
    value: Any = params
    for key in weight.path.split("/"):
        value = value[key]
        if key == "layers" and 0 in value:
            value = value[weight.layer]
    if value.ndim > len(weight.shape):
        value = value[weight.layer]
    return weight.to_stored(np.asarray(jax.device_get(value)).astype(jnp.dtype(dtype)))


def _special_ids(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, int | None]:
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    if config.decoder_start_token is not None:
        ids["decoder_start_token_id"] = config.decoder_start_token
    return ids
