"""The weight files of a checkpoint in Hugging Face format, read piece by piece."""

import functools
import importlib.util
import math
import pathlib
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from gist_jax.errors import UserError, shortened
from gist_jax.io import read_json

Index = tuple[slice, ...]
# A file is opened anew for each piece of at most so many bytes: pages of a mapped file that were read
# count as memory until it is closed.
PIECE_BYTES = 1 << 28
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}


class Stored(NamedTuple):
    """A tensor in a file."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype


class TensorFiles:
    """All tensors of a directory: one file or several with an index, safetensors or PyTorch's .bin."""

    def __init__(self, directory: pathlib.Path):
        """Reads what tensors there are.

        Raises:
          UserError: naming a file that is missing or cannot be read, or a tensor that is there twice
            or is no floating-point tensor.
        """
        self.bytes_read = 0
        self._tensors: dict[str, Stored] = {}
        for form, listed in (("model.safetensors", _safetensors), ("pytorch_model.bin", _bin)):
            files = _files(directory, form)
            if files is None:
                continue
            for file, expected in files.items():
                found = listed(file)
                missing = sorted(expected - found.keys())
                if missing:
                    raise UserError(f"{file} has no tensor {missing[0]}, which the index names")
                for name in found.keys() & self._tensors.keys():
                    raise UserError(
                        f"{file} has tensor {name}, which {self._tensors[name].file} has too"
                    )
                self._tensors |= found
            return
        raise UserError(f"{directory} has neither model.safetensors nor pytorch_model.bin, nor an index")

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Stored:
        return self._tensors[name]

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A part of a tensor, as it is stored. `index` has a slice for each of its first dimensions.

        Raises:
          UserError: if the file is damaged, or a number is not finite.
        """
        stored = self._tensors[name]
        index = *index, *[slice(None)] * (len(stored.shape) - len(index))
        sizes = [len(range(*s.indices(n))) for s, n in zip(index, stored.shape, strict=True)]
        out = np.empty(sizes, stored.dtype)
        row_bytes = math.prod(sizes[1:]) * stored.dtype.itemsize
        step = max(PIECE_BYTES // max(row_bytes, 1), 1)
        first = range(*index[0].indices(stored.shape[0])) if index else range(0)
        read = _read_bin if stored.file.suffix == ".bin" else _read_safetensors
        for start in range(0, len(first), step):
            rows = first[start : start + step]
            piece = read(stored.file, name, (slice(rows[0], rows[-1] + 1), *index[1:]))
            if not np.isfinite(piece).all():
                raise UserError(f"tensor {name} of {stored.file} has values that are not finite numbers")
            out[start : start + step] = piece
        self.bytes_read += out.nbytes
        return out


def _files(directory: pathlib.Path, form: str) -> dict[pathlib.Path, set[str]] | None:
    """File -> the tensors that the index expects in it; None if there is nothing of this form."""
    index = directory / f"{form}.index.json"
    if not index.exists():
        return {directory / form: set()} if (directory / form).exists() else None
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map")
    files: dict[pathlib.Path, set[str]] = {}
    for name, file in weight_map.items():
        if pathlib.PurePath(str(file)).name != file:
            raise UserError(f"{index} names the file {file!r}, which is not one of its directory")
        files.setdefault(directory / file, set()).add(name)
    for file in files:
        if not file.exists():
            raise UserError(f"{index} names {file.name}, which is missing")
    return files


def _safetensors(path: pathlib.Path) -> dict[str, Stored]:
    found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                dtype = part.get_dtype()
                if dtype not in _DTYPES:
                    raise UserError(f"tensor {name} of {path} is of type {dtype}, not floating-point")
                found[name] = Stored(path, tuple(part.get_shape()), np.dtype(_DTYPES[dtype]))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {shortened(error)}") from None
    return found


def _read_safetensors(path: pathlib.Path, name: str, index: Index) -> np.ndarray:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_slice(name)[index]
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {shortened(error)}") from None


def _bin(path: pathlib.Path) -> dict[str, Stored]:
    found = {}
    for name, tensor in _load_bin(path).items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if not tensor.is_floating_point():
            raise UserError(f"tensor {name} of {path} is of type {dtype}, not floating-point")
        found[name] = Stored(path, tuple(tensor.shape), np.dtype(getattr(ml_dtypes, dtype, dtype)))
    return found


@functools.lru_cache(maxsize=1)
def _load_bin(path: pathlib.Path) -> dict[str, Any]:
    """The tensors of a .bin file, mapped into memory. Nothing but tensors is ever unpickled."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{path} needs PyTorch to be read: pip install 'gist_jax[torch]'")
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"cannot read {path} as plain tensors: {str(error).split('.')[0]}") from None
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise UserError(f"{path} does not hold tensors by name")
    return tensors


def _read_bin(path: pathlib.Path, name: str, index: Index) -> np.ndarray:
    import torch

    part = _load_bin(path)[name][index].contiguous()
    if part.dtype == torch.bfloat16:
        return part.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return part.numpy()
