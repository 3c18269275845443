"""Weight diffs: what finetuning changed, published where the base weights may not be.

A diff is a directory in Hugging Face format whose float32 tensors are tuned minus base. The base may
have fewer rows of vocabulary, which count as zeros. Sums of floats are rounded, so tuned = base + diff
need not hold exactly: where it does not, our diffs have the tuned values in a file of their own.
"""

import math
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from gist_jax.errors import UserError
from gist_jax.interop.export import write_tensors
from gist_jax.interop.tensor_files import TensorFiles
from gist_jax.io import atomic_directory, read_json

EXACT = "exact_values.safetensors"
# Sum of all weights of the published models, which were given out as diffs against LLaMA-7B.
# Source: src/weight_diff.py of github.com/jayelm/gisting.
PUBLISHED_SUMS = {
    "llama-7b-gist-1": 50547.9570,
    "llama-7b-pos_control-1": 50596.9141,
    "llama-7b-neg_control-1": 50503.8789,
}
CONSTANT = "rotary_emb.inv_freq"
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight", "shared.weight")


def make_diff(tuned: pathlib.Path, base: pathlib.Path, output: pathlib.Path) -> None:
    """Writes tuned − base, from which `recover` gives back the tuned tensors exactly in float32.

    Raises:
      UserError: if the two do not have the same tensors, or the output exists.
    """
    changed, known = TensorFiles(tuned), TensorFiles(base)
    names = _common(changed, known)
    with atomic_directory(output) as tmp:
        exact: dict[str, np.ndarray] = {}

        def difference(name: str) -> np.ndarray:
            value, before = _pair(name, changed, known)
            result = value - before
            (index,) = np.nonzero((before + result != value).reshape(-1))
            if len(index):
                exact[f"{name}.index"] = index.astype(np.int64)
                exact[f"{name}.value"] = value.reshape(-1)[index]
            return result

        _write(tmp, changed, names, difference)
        if exact:
            save_file(exact, tmp / EXACT)
        _copy_other_files(tuned, tmp)


def recover(base: pathlib.Path, diff: pathlib.Path, output: pathlib.Path, name: str) -> None:
    """Writes base + diff, in float32.

    Args:
      name: of the diff, such as the last part of its hub id.

    Raises:
      UserError: if the two do not have the same tensors, the output exists, or the name is one of
        PUBLISHED_SUMS and the sum of the recovered weights is not the published one.
    """
    changes, known = TensorFiles(diff), TensorFiles(base)
    names = _common(changes, known)
    sums: dict[str, float] = {}
    with atomic_directory(output) as tmp:

        def recovered(tensor: str) -> np.ndarray:
            change, before = _pair(tensor, changes, known)
            value = before + change
            for index, exact in _exact_values(diff, tensor):
                value.reshape(-1)[index] = exact
            sums[tensor] = float(value.sum(dtype=np.float64))
            return value

        _write(tmp, changes, names, recovered)
        _copy_other_files(diff, tmp)
        _check_sum(name, sums, read_json(tmp / "config.json"))


def _common(changed: TensorFiles, known: TensorFiles) -> list[str]:
    """Both must have the same tensors, but for a vocabulary that may be larger in the first.

    Older checkpoints hold constants of the model too; those that only one of the two has are left out.
    """
    for name in known:
        if name not in changed and not name.endswith(CONSTANT):
            raise UserError(f"{known[name].file.parent} has tensor {name}, which the other has not")
    names = [name for name in changed if name in known or not name.endswith(CONSTANT)]
    for name in names:
        if name not in known:
            raise UserError(f"{changed[name].file.parent} has tensor {name}, which the base has not")
        ours, theirs = changed[name].shape, known[name].shape
        grown = name in VOCABULARY and ours[0] >= theirs[0] and ours[1:] == theirs[1:]
        if ours != theirs and not grown:
            raise UserError(f"tensor {name} has shape {ours}, but that of the base {theirs}")
    return names


def _pair(name: str, changed: TensorFiles, known: TensorFiles) -> tuple[np.ndarray, np.ndarray]:
    value, base = (files.read(name).astype(np.float32) for files in (changed, known))
    missing = value.shape[0] - base.shape[0] if value.ndim else 0
    if missing:
        base = np.concatenate([base, np.zeros((missing, *base.shape[1:]), np.float32)])
    return value, base


def _exact_values(diff: pathlib.Path, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if (diff / EXACT).exists():
        with safe_open(diff / EXACT, framework="numpy") as file:
            if f"{name}.index" in file.keys():  # noqa: SIM118
                yield file.get_tensor(f"{name}.index"), file.get_tensor(f"{name}.value")


def _write(
    directory: pathlib.Path,
    like: TensorFiles,
    names: list[str],
    value_of: Callable[[str], np.ndarray],
) -> None:
    sizes = {name: math.prod(like[name].shape) * 4 for name in names}
    write_tensors(directory, sizes, value_of, 2 << 30)


def _copy_other_files(source: pathlib.Path, target: pathlib.Path) -> None:
    """config.json, the tokenizer and the like: all but weights."""
    for file in source.iterdir():
        weights = file.suffix in (".safetensors", ".bin") or file.name.endswith(".index.json")
        if file.is_file() and not weights:
            shutil.copyfile(file, target / file.name)


def _check_sum(name: str, sums: dict[str, float], fields: dict) -> None:
    """Compares with the published sum, which was of the model's constants too: its frequencies.

    It was added up in float32, tensor by tensor, and is compared with our exact sum as well.
    """
    if name not in PUBLISHED_SUMS:
        return
    size = fields["hidden_size"] // fields["num_attention_heads"]
    frequencies = 1 / 10_000.0 ** (np.arange(0, size, 2) / size)
    if not any(tensor.endswith(CONSTANT) for tensor in sums):
        for layer in range(fields["num_hidden_layers"]):
            sums[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = float(frequencies.sum())
    exact, rounded = sum(sums.values()), np.float32(0)
    for tensor in sorted(sums, key=_published_order):
        rounded += np.float32(sums[tensor])
    if min(abs(exact - PUBLISHED_SUMS[name]), abs(float(rounded) - PUBLISHED_SUMS[name])) > 1e-2:
        raise UserError(
            f"the recovered weights of {name} add up to {exact:.4f}, not {PUBLISHED_SUMS[name]:.4f}: "
            "the base is not LLaMA-7B, or a file is damaged"
        )


def _published_order(name: str) -> tuple[int, int, int]:
    """Embedding, then layer by layer, final norm, head."""
    parts = "q_proj k_proj v_proj o_proj inv_freq gate_proj down_proj up_proj input_ post_".split()  # noqa: SIM905
    if ".layers." in name:
        part = next((i for i, part in enumerate(parts) if part in name), len(parts))
        return 1, int(name.split(".layers.")[1].split(".")[0]), part
    return (0, 0, 0) if "embed" in name else (2, 0, 0) if "norm" in name else (3, 0, 0)
