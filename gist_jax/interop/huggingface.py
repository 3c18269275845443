"""Reads checkpoints in Hugging Face format (config.json and safetensors)."""

import math
import pathlib
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from gist_jax.errors import UserError
from gist_jax.files import read_json
from gist_jax.interop import llama, t5
from gist_jax.models import family
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params

# model_type in config.json -> its fields and names of tensors. Of these, a linear weight is stored as
# [out, in]; ours is [in, out] with the heads apart.
FORMATS = {"llama": llama, "t5": t5}


def find(name: str | pathlib.Path) -> pathlib.Path:
    """The directory of a model: a local one, or that of a hub id, fetched if it is not in the cache.

    Raises:
      UserError: if there is neither.
    """
    directory = pathlib.Path(name)
    if directory.is_dir():
        return directory
    hub_id, problem = str(name), f"there is no directory {name}"
    if hub_id.count("/") > 1 or hub_id.startswith((".", "/")):
        raise UserError(problem)
    patterns = ["*.json", "*.safetensors", "*.model"]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # many kinds, of the hub's library and of the network below it
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{problem}, and the Hugging Face hub gave no such model: {reason}") from None


class Checkpoint:
    """A checkpoint in a directory: opened and checked, but not yet read."""

    def __init__(self, directory: str | pathlib.Path):
        """Opens a checkpoint.

        Raises:
          UserError: naming a file that cannot be read, or a tensor that is missing, left over or
            misshapen.
        """
        directory = pathlib.Path(directory)
        self.fields = read_json(directory / "config.json")
        kind = self.fields.get("model_type")
        if kind not in FORMATS:
            raise UserError(f"model_type {kind!r} is not supported, only {', '.join(FORMATS)}")
        self._tensors = _open_shards(directory)
        self.config = read_config(FORMATS[kind], self.fields, self._tensors)
        table = FORMATS[kind].weights(self.config)
        self._patterns = {path: name for name, path in table.items()}
        expected = _expected(self.config, self._patterns)
        for name, shape in expected.items():
            if name not in self._tensors:
                raise UserError(f"{directory} has no tensor {name}")
            found = tuple(self._tensors[name].get_slice(name).get_shape())
            if found != shape:
                raise UserError(f"tensor {name} of {directory} has shape {found}, not {shape}")
        left_over = [
            name
            for name in self._tensors
            if name not in expected and not FORMATS[kind].is_left_out(name, self.config)
        ]
        if left_over:
            raise UserError(f"{directory} has tensors that {kind} has not: {', '.join(left_over[:3])}")

    def has_gist_token(self, tokenizer_size: int) -> bool:
        """Whether the model was trained with the gist token of a tokenizer of that many entries.

        It says so under the key "gist", or its vocabulary ends with that token, as in the published
        checkpoints. A vocabulary that is merely padded beyond the tokenizer's does not count.
        """
        return "gist" in self.fields or self.config.vocab_size == tokenizer_size

    def read(self, dtype=None) -> Params:
        """The parameters with stacked layers, NumPy arrays of `dtype` (None: as they are stored)."""
        params: Params = {}
        for path, shape in _shapes(self.config).items():
            name = self._patterns[path]
            if "{}" in name:
                value = np.stack(
                    [self._tensor(name.format(i), path, shape[1:]) for i in range(shape[0])]
                )
            else:
                value = self._tensor(name, path, shape)
            node, *parents, leaf = [params, *path.split("/")]
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value if dtype is None else value.astype(jnp.dtype(dtype))
        return params

    def _tensor(self, name: str, path: str, shape: tuple[int, ...]) -> np.ndarray:
        value = np.asarray(self._tensors[name].get_tensor(name))
        return (value.T if _is_linear(path) else value).reshape(shape)


def read_config(form, fields: dict[str, Any], names) -> ModelConfig:
    """The configuration that a module of FORMATS reads, or one sentence about what is wrong."""
    try:
        return form.read_config(fields, names)
    except KeyError as error:
        raise UserError(f"config.json has no field {error}") from None
    except UserError:
        raise
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"config.json describes no model: {error}") from None


def _is_linear(path: str) -> bool:
    return path.endswith("kernel")


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path of every parameter -> its shape with stacked layers."""
    shapes = jax.eval_shape(lambda: family.init(config, jax.random.key(0)))
    return {
        "/".join(str(k.key) for k in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(shapes)
    }


def _expected(config: ModelConfig, patterns: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Name of every tensor of a checkpoint -> the shape it must be stored with."""
    names = {}
    for path, shape in _shapes(config).items():
        layered = "{}" in patterns[path]
        count, shape = (shape[0], shape[1:]) if layered else (1, shape)
        if _is_linear(path):
            # Heads and their dimensions are one dimension there, and out comes before in.
            inputs = shape[:-1] if path.endswith("output/kernel") else shape[:1]
            shape = (math.prod(shape) // math.prod(inputs), math.prod(inputs))
        for i in range(count):
            names[patterns[path].format(i)] = shape
    return names


def _open_shards(directory: pathlib.Path) -> dict[str, Any]:
    """Tensor name -> open safetensors file."""
    index = directory / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index} has no weight_map")
        files = set(weight_map.values())
    tensors = {}
    for name in sorted(files):
        try:
            shard = safe_open(directory / name, framework="flax")
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {directory / name}: {error}") from None
        tensors.update(dict.fromkeys(shard.keys(), shard))
    return tensors
