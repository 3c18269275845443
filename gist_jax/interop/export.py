"""Writes a model as a directory in Hugging Face format, which transformers loads as it stands."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file
from tqdm import tqdm

from gist_jax.data.tokenization import Tokenizer
from gist_jax.errors import UserError
from gist_jax.gist import PAPER_MASK, MaskConfig
from gist_jax.interop.huggingface import FORMAT, FORMATS
from gist_jax.interop.weights import Weight, weights
from gist_jax.io import atomic_directory, write_json
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import TRANSPOSED, Params

EXPORT_DTYPES = ("float32", "bfloat16", "float16")


def export(
    directory: str | pathlib.Path,
    params: Params,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    num_gist_tokens: int,
    condition: str,
    template: str = "paper",
    mask: MaskConfig = PAPER_MASK,
    dtype: str = "float32",
    shard_bytes: int = 2 << 30,
) -> None:
    """Writes config.json, generation_config.json, safetensors with an index, and the tokenizer.

    Args:
      directory: appears whole or not at all.
      params: with stacked or unrolled layers, fetched from their devices one tensor at a time.
      template: how its prompts are written, `PromptTemplate.name`.
      dtype: one of EXPORT_DTYPES.
      shard_bytes: of a file, at most; a single larger tensor has one of its own.

    Raises:
      UserError: if the directory exists, or the dtype is none of these.
    """
    if dtype not in EXPORT_DTYPES:
        raise UserError(f"dtype must be one of {', '.join(EXPORT_DTYPES)}, not {dtype!r}")
    with atomic_directory(directory) as tmp:
        form = FORMATS[config.family]
        special = _special_ids(config, tokenizer)
        fields = {**form.write_config(config), **special, "torch_dtype": dtype}
        has_mask = mask != PAPER_MASK
        if num_gist_tokens > 0:  # else the model was never trained with a gist token
            fields["gist"] = {
                "format": FORMAT if has_mask else 1,  # as versions that knew of no masks knew it
                "num_gist_tokens": num_gist_tokens,
                "gist_token_id": tokenizer.gist_id,
                "condition": condition,
                "template": template,
                **({"mask": dataclasses.asdict(mask)} if has_mask else {}),
            }
        write_json(tmp / "config.json", fields)
        write_json(tmp / "generation_config.json", special)
        tokenizer.save(tmp)
        planned = {w.name: w for w in weights(config, form.weights(config))}
        itemsize = jnp.dtype(dtype).itemsize
        write_tensors(
            tmp,
            {name: math.prod(w.stored_shape) * itemsize for name, w in planned.items()},
            lambda name: _stored(params, planned[name], dtype),
            shard_bytes,
        )


def write_tensors(
    directory: pathlib.Path,
    sizes: Mapping[str, int],
    value_of: Callable[[str], np.ndarray],
    shard_bytes: int,
) -> None:
    """Writes tensors as safetensors, in several files with an index if one would be too large.

    Args:
      sizes: bytes of every tensor, by name.
      value_of: the tensor of a name; called once for each, file by file.
      shard_bytes: of a file, at most.
    """
    split = split_state_dict_into_shards_factory(
        dict(sizes),
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    with tqdm(total=len(sizes), desc="writing weights", unit="tensor", leave=False) as bar:
        for file, names in split.filename_to_tensors.items():
            tensors = {}
            for name in names:
                tensors[name] = np.ascontiguousarray(value_of(name))
                bar.update(1)
            save_file(tensors, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(directory / "model.safetensors.index.json", index)


def _stored(params: Params, weight: Weight, dtype: str) -> np.ndarray:
    value: Any = params
    is_transposed = False
    for key in weight.path.split("/"):
        is_transposed = key not in value
        value = value[TRANSPOSED if is_transposed else key]
        if key == "layers" and 0 in value:
            value = value[weight.layer]
    if value.ndim > len(weight.shape):
        value = value[weight.layer]
    array = np.asarray(jax.device_get(value)).astype(jnp.dtype(dtype))
    return weight.to_stored(array.T if is_transposed else array)


def _special_ids(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, int | None]:
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    if config.is_encoder_decoder:
        ids["decoder_start_token_id"] = config.decoder_start_token
    return ids
