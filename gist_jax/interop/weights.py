"""Parameters ↔ tensors in Hugging Face format, by one table per family, read in both directions.

A linear weight is stored as [out, in], where several dimensions of ours (the heads and their
dimensions) are one; ours is [in, out]. Layers are stored one by one; ours are stacked.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from gist_jax.errors import UserError
from gist_jax.interop.tensor_files import Index, TensorFiles
from gist_jax.models import registry
from gist_jax.models.config import ModelConfig


class Weight(NamedTuple):
    """One tensor of a checkpoint, and the part of a parameter that it is."""

    name: str  # in the checkpoint
    path: str  # of the parameter, as in "layers/attention/query/kernel"
    layer: int | None  # of a stacked parameter
    shape: tuple[int, ...]  # ours, of the layer

    @property
    def num_inputs(self) -> int:
        """How many dimensions of ours are a linear weight's inputs; 0 if it is none."""
        if not self.path.endswith("kernel"):
            return 0
        return len(self.shape) - 1 if self.path.endswith("output/kernel") else 1

    @property
    def stored_shape(self) -> tuple[int, ...]:
        if self.path.endswith("/bias"):
            return (math.prod(self.shape),)
        k = self.num_inputs
        return (math.prod(self.shape[k:]), math.prod(self.shape[:k])) if k else self.shape

    def to_stored(self, value: np.ndarray) -> np.ndarray:
        """A layer's array as it is stored."""
        stored = self.stored_shape
        return value.reshape(stored[::-1]).T if self.num_inputs else value.reshape(stored)

    def read(self, tensors: TensorFiles, index: Index) -> np.ndarray:
        """A part of the layer's array; `index` has a slice for each dimension."""
        index = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, self.shape, strict=True))
        sizes = tuple(s.stop - s.start for s in index)
        k = self.num_inputs
        if k:
            outputs, inputs = _flat(index[k:], self.shape[k:]), _flat(index[:k], self.shape[:k])
            return tensors.read(self.name, (outputs, inputs)).T.reshape(sizes)
        if len(self.stored_shape) < len(self.shape):
            return tensors.read(self.name, (_flat(index, self.shape),)).reshape(sizes)
        return tensors.read(self.name, index)


def _flat(index: Index, shape: tuple[int, ...]) -> slice:
    """The slice of several dimensions as one. Only the first may be cut."""
    size = math.prod(shape[1:])
    if any(s != slice(0, n) for s, n in zip(index[1:], shape[1:], strict=True)):
        raise ValueError(f"dimensions {shape[1:]} that are stored as one with {shape[0]} cannot be cut")
    return slice(index[0].start * size, index[0].stop * size)


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path of every parameter -> its shape with stacked layers."""
    params = jax.eval_shape(lambda: registry.init(config, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}


def weights(config: ModelConfig, table: dict[str, str]) -> Iterator[Weight]:
    """Every tensor of a checkpoint of a model, parameter by parameter.

    Args:
      table: name in the checkpoint -> path; `{}` is the layer.
    """
    names = {path: name for name, path in table.items()}
    for path, shape in shapes(config).items():
        if "{}" in names[path]:
            for i in range(shape[0]):
                yield Weight(names[path].format(i), path, i, shape[1:])
        else:
            yield Weight(names[path], path, None, shape)


def check(tensors: TensorFiles, expected: list[Weight], is_ignored: Callable[[str], bool]) -> None:
    """Compares what there is with what there must be.

    Args:
      is_ignored: whether a tensor of a given name is nothing to read.

    Raises:
      UserError: naming a tensor that is missing, left over or misshapen.
    """
    for weight in expected:
        if weight.name not in tensors:
            raise UserError(f"there is no tensor {weight.name}")
        found, shape = tensors[weight.name], weight.stored_shape
        if found.shape != shape:
            raise UserError(f"tensor {weight.name} of {found.file} has shape {found.shape}, not {shape}")
    known = {weight.name for weight in expected}
    extra = [name for name in tensors if name not in known and not is_ignored(name)]
    if extra:
        raise UserError(f"{tensors[extra[0]].file} has tensors of no known use: {', '.join(extra[:3])}")
