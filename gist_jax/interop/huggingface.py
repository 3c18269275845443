"""Checkpoints in Hugging Face format: found, checked, and streamed to the devices."""

import dataclasses
import functools
import pathlib
from collections.abc import Container, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from huggingface_hub import HfApi, snapshot_download
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike
from tqdm import tqdm

from gist_jax.data.tokenization import Tokenizer
from gist_jax.errors import UserError, shortened
from gist_jax.gist import CONDITIONS, MaskConfig
from gist_jax.interop import llama, t5
from gist_jax.interop.tensor_files import Index, TensorFiles
from gist_jax.interop.weights import Weight, check, shapes, weights
from gist_jax.io import read_json
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params
from gist_jax.storage import as_path, is_bucket
from gist_jax.workdir import MODEL

FORMAT = 2  # of what an export's config.json says of gisting; those before are read too
# Family -> how the fields of its config.json and its tensors are named.
FORMATS = {"llama": llama, "t5": t5}


def find(name: str | pathlib.Path) -> pathlib.Path:
    """The directory of a model: a local one, or that of a hub id, fetched if it is not in the cache.

    Of a bucket it is a training workdir.

    Raises:
      UserError: if there is none of these.
    """
    if is_bucket(name):
        workdir = as_path(name)
        if not (workdir / MODEL).exists():
            raise UserError(f"{name} holds no trained run: other models are not read from a bucket")
        return workdir
    directory = pathlib.Path(name)
    if directory.is_dir():
        return directory
    hub_id, problem = str(name), f"there is no directory {name}"
    if hub_id.count("/") > 1 or hub_id.startswith((".", "/")):
        raise UserError(problem)
    try:
        # One request, which fails at once where there is no network; others are tried several times.
        files = [file.rfilename for file in HfApi().model_info(hub_id, timeout=10).siblings or ()]
        weights = "*.safetensors" if any(f.endswith(".safetensors") for f in files) else "*.bin"
        patterns = ["*.json", "*.jinja", "*.model", weights]
        return pathlib.Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # many kinds, of the hub's library and of the network below it
        reason = shortened(str(error).strip().split("\n")[0])
    try:  # what was fetched before serves without a network
        return pathlib.Path(snapshot_download(hub_id, local_files_only=True))
    except Exception:
        raise UserError(f"{problem}, and the Hugging Face hub gave no such model: {reason}") from None


def _format_of(model_type: Any) -> ModuleType:
    """The module of FORMATS for the model_type of a config.json."""
    for module in FORMATS.values():
        if model_type in module.MODEL_TYPES:
            return module
    known = ", ".join(name for module in FORMATS.values() for name in module.MODEL_TYPES)
    raise UserError(f"model_type {model_type!r} is not supported, only {known}")


def read_config(fields: Mapping[str, Any], names: Container[str]) -> ModelConfig:
    """The configuration in the fields of a config.json that comes with tensors of given names.

    Raises:
      UserError: naming an architecture or a field that is not computed here.
    """
    form = _format_of(fields.get("model_type"))
    try:
        return form.read_config(fields, names)
    except KeyError as error:
        raise UserError(f"config.json has no field {error}") from None
    except UserError:
        raise
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"config.json describes no model: {shortened(error)}") from None


class Checkpoint:
    """A checkpoint in a directory: opened and checked, but not yet read."""

    def __init__(self, directory: str | pathlib.Path):
        """Opens a checkpoint.

        Raises:
          UserError: naming a file that cannot be read, or a tensor that is missing, left over or
            misshapen.
        """
        directory = as_path(directory)
        self.fields = read_json(directory / "config.json")
        if self.fields.get("quantization_config"):
            raise UserError(f"{directory} is a quantized checkpoint, which is not supported")
        form = _format_of(self.fields.get("model_type"))
        self.tensors = TensorFiles(directory)
        self.config = read_config(self.fields, self.tensors)
        self.weights = list(weights(self.config, form.weights(self.config)))
        check(self.tensors, self.weights, lambda name: form.is_ignored(name, self.config))

    @property
    def dtype(self) -> jnp.dtype:
        """That of the arrays as they come: bfloat16 if all are stored so, otherwise float32."""
        stored = {self.tensors[weight.name].dtype for weight in self.weights}
        return jnp.dtype(jnp.bfloat16 if stored == {jnp.dtype(jnp.bfloat16)} else jnp.float32)

    def has_gist_token(self, tokenizer_size: int) -> bool:
        """Whether the model was trained with the gist token of a tokenizer of that many entries.

        It says so under the key "gist", or its vocabulary ends with that token, as in the published
        checkpoints. A vocabulary that is merely padded beyond the tokenizer's does not count.
        """
        return "gist" in self.fields or self.config.vocab_size == tokenizer_size

    def gist_settings(self, tokenizer: Tokenizer) -> tuple[str, int, str, MaskConfig]:
        """The condition the model was trained under, its number of gist tokens, template and mask.

        What the config does not say is as in the published gist checkpoints, or, of a model that was
        never trained with a gist token, "pos_control" and 0.
        """
        trained = self.has_gist_token(tokenizer.vocab_size)
        condition, num_gist_tokens = ("gist", 1) if trained else ("pos_control", 0)
        said = self.fields.get("gist") or {}
        if not isinstance(said, dict) or said.get("format", 1) not in range(1, FORMAT + 1):
            raise UserError(
                f"the field gist of config.json is {shortened(said)}, which this version of gist_jax "
                f"cannot read: it knows formats 1 to {FORMAT}"
            )
        condition = said.get("condition", condition)
        num_gist_tokens = said.get("num_gist_tokens", num_gist_tokens)
        if condition not in CONDITIONS or type(num_gist_tokens) is not int or num_gist_tokens < 0:
            raise UserError(f"the field gist of config.json makes no sense: {shortened(said)}")
        try:
            mask = MaskConfig(**said.get("mask", {}))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the field gist of config.json makes no sense: mask.{shortened(error)}"
            ) from None
        return condition, num_gist_tokens, str(said.get("template", "paper")), mask

    def config_for(self, tokenizer: Tokenizer) -> ModelConfig:
        """The model's shape with room for the gist token of a tokenizer."""
        rows = max(self.config.vocab_size, tokenizer.vocab_size)
        return dataclasses.replace(self.config, vocab_size=rows)

    def load_for(self, tokenizer: Tokenizer, dtype: DTypeLike, shardings: Any = None) -> Params:
        """The parameters of `config_for`, see `load`; a gist token that was not trained is a mean."""
        params = self.load(dtype, shardings, self.config_for(tokenizer).vocab_size)
        if self.has_gist_token(tokenizer.vocab_size):
            return params
        return with_gist_token(params, gist_id=tokenizer.gist_id, stored=self.config.vocab_size)

    def load(self, dtype: DTypeLike, shardings: Any = None, vocab_size: int | None = None) -> Params:
        """Streams the parameters, with stacked layers, to where they shall lie.

        Besides the arrays themselves the host holds no more than a part of one tensor, and reads
        only what its own devices hold.

        Args:
          dtype: of the arrays.
          shardings: one for every parameter; None puts all on the first device.
          vocab_size: rows of the vocabulary to have; those that are not stored are zeros.
        """
        wanted = shapes(
            dataclasses.replace(self.config, vocab_size=vocab_size or self.config.vocab_size)
        )
        on = dict.fromkeys(wanted, SingleDeviceSharding(jax.local_devices()[0]))
        if shardings is not None:
            on = flatten_dict(shardings, sep="/")
        arrays: dict[str, jax.Array] = {}
        for weight in tqdm(self.weights, desc="reading weights", unit="tensor", leave=False):
            path, shape = weight.path, wanted[weight.path]
            if weight.layer is None:
                arrays[path] = self._array(weight, shape, dtype, on[path])
                continue
            if weight.layer == 0:
                arrays[path] = _zeros(shape, dtype, on[path])
            layer = self._array(weight, shape[1:], dtype, _of_layer(on[path]))
            arrays[path] = _put(arrays[path], layer, weight.layer)
        return unflatten_dict(arrays, sep="/")

    def _array(
        self, weight: Weight, shape: tuple[int, ...], dtype: DTypeLike, sharding: Sharding
    ) -> jax.Array:
        parts: dict[tuple, np.ndarray] = {}  # devices with equal shares read once

        def part(index: Index | None) -> np.ndarray:
            assert index is not None  # every device has a part
            key = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
            if key not in parts:
                cut = [slice(min(a, n), min(b, n)) for (a, b), n in zip(key, weight.shape, strict=True)]
                value = weight.read(self.tensors, tuple(cut)).astype(jnp.dtype(dtype))
                room = [(0, b - a - n) for (a, b), n in zip(key, value.shape, strict=True)]
                parts[key] = np.pad(value, room) if any(r for _, r in room) else value
            return parts[key]

        return jax.make_array_from_callback(shape, sharding, part)


@functools.partial(jax.jit, donate_argnums=0)
def _put(stacked: jax.Array, layer: jax.Array, index: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, index, 0)


def _zeros(shape: tuple[int, ...], dtype: DTypeLike, sharding: Sharding) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


def _of_layer(sharding: Sharding) -> Sharding:
    """Where one layer of a stacked parameter lies."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


@functools.partial(jax.jit, static_argnames=("gist_id", "stored"), donate_argnames="params")
def with_gist_token(params: Params, *, gist_id: int, stored: int) -> Params:
    """Gives the gist token an embedding, and a column of the head: the mean of all real tokens'.

    Args:
      params: is donated.
      gist_id: all tokens below are real.
      stored: rows of the vocabulary that the checkpoint had; those above are means too.
    """

    def extended(x: jax.Array, axis: int) -> jax.Array:
        rows = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
        real = jnp.where(rows < gist_id, x.astype(jnp.float32), 0)
        mean = jnp.sum(real, axis=axis, keepdims=True) / gist_id
        return jnp.where((rows == gist_id) | (rows >= stored), mean.astype(x.dtype), x)

    params = {**params, "embedding": extended(params["embedding"], 0)}
    if "head" in params:
        params["head"] = {"kernel": extended(params["head"]["kernel"], 1)}
    return params
