"""Gist caches as prefix caches that stock engines take.

Rotary positions are relative. Keys that are rotated back by the position of the first gist token stand
at positions 0 … k - 1, and whatever an engine reads after them goes on at k, as after any prefix.

Shape letters: B rows, G slots of a row, K key/value heads, H head dim, L layers.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.flax import save_file

from gist_jax.errors import UserError
from gist_jax.io import Path, atomic_write
from gist_jax.models.config import LlamaConfig
from gist_jax.models.layers import rotary_angles, rotate
from gist_jax.models.llama import frequencies

if TYPE_CHECKING:
    import torch
    import transformers

KeyValues = Sequence[jax.Array]  # of every layer [B, K, G, H]


def rotated_back(keys: KeyValues, start: np.ndarray, config: LlamaConfig) -> tuple[jax.Array, ...]:
    """Keys as they are where the row's first gist token stands at position 0.

    They are computed in float32 and rounded to their own dtype once.

    Args:
      keys: of every layer `[B, K, G, H]`, rotated by the positions start … start + G - 1.
      start: int `[B]`.
    """
    angles = rotary_angles(-jnp.asarray(start)[:, None], jnp.asarray(frequencies(config)))

    def back(x: jax.Array) -> jax.Array:
        return rotate(x.swapaxes(1, 2).astype(jnp.float32), angles).swapaxes(1, 2).astype(x.dtype)

    return tuple(map(back, keys))


def check_positions(positions: np.ndarray, valid: np.ndarray, offset: np.ndarray, limit: float) -> None:
    """Raises unless every row's gist tokens stand in one run, at positions the model has.

    Args:
      positions: int `[B, G]`.
      valid: bool `[B, G]`, where there are gist tokens: first in every row.
      offset: int `[B]`, of what comes after them.
      limit: positions of the model.

    Raises:
      UserError: in one sentence.
    """
    steps = np.diff(positions, axis=1)
    if (valid[:, 1:] & (steps != 1)).any() or (offset != positions[:, 0] + valid.sum(axis=1)).any():
        raise UserError(
            "the gist tokens do not stand in one run with nothing behind them: they are no prefix"
        )
    if offset.max() > limit:
        raise UserError(f"the gist tokens stand beyond the model's {limit} positions")


@dataclasses.dataclass(frozen=True, repr=False)
class Prefix:
    """Gist caches of B instructions as a prefix of G slots: what engines call a prompt cache.

    A row with fewer gist tokens has them in its last slots. Index it (`prefix[2]`, `prefix[[0, 0, 1]]`)
    to choose rows.
    """

    keys: tuple[jax.Array, ...]  # of every layer [B, K, G, H], those of positions 0 … k - 1
    values: tuple[jax.Array, ...]
    mask: np.ndarray  # bool [B, G], where there are gist tokens
    described: Mapping[str, Any]  # what made it, as JSON has it

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, rows: int | slice | Sequence[int]) -> "Prefix":
        index = np.atleast_1d(np.arange(len(self))[rows])
        keys, values = (tuple(x[index] for x in of_layers) for of_layers in (self.keys, self.values))
        return dataclasses.replace(self, keys=keys, values=values, mask=self.mask[index])

    def __repr__(self) -> str:
        layers = f"{len(self.keys)} layers of {self.keys[0].dtype.name}"
        return f"Prefix({len(self)} rows, k = {self.mask.shape[1]}, {layers})"

    def to_transformers(
        self, model: "transformers.PreTrainedModel", num_beams: int = 1
    ) -> "transformers.DynamicCache":
        """A cache for one call of a transformers model's `generate`, on its device and in its dtype.

        A call writes into the cache: make a new one for each.

        Args:
          num_beams: of the call, each of which has a row of the cache.
        """
        import torch
        from transformers import DynamicCache

        like = next(model.parameters())

        def tensor(x: jax.Array) -> torch.Tensor:
            return torch.from_numpy(np.array(x.astype(jnp.float32))).to(like.device, like.dtype)

        pairs = [(tensor(k), tensor(v)) for k, v in zip(self.keys, self.values, strict=True)]
        cache = DynamicCache(ddp_cache_data=pairs, config=model.config)
        if num_beams > 1:
            cache.batch_repeat_interleave(num_beams)
        return cache

    def inputs(self, rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, "torch.Tensor"]:
        """`input_ids` and `attention_mask` that go with `to_transformers`, int64 `[B, G + T]`.

        Placeholders stand for the gist tokens, and padding between them and the input: left of them, or
        right of the input, it would be wrong.

            input_ids        p p - - i i        attention_mask    1 1 0 0 1 1
                             p p i i i i                          1 1 1 1 1 1

        Args:
          rows: ids of what follows each instruction, see `PromptTemplate.input_ids`.
          pad_id: of anything; it is masked.

        Raises:
          UserError: if there are not as many rows as in the prefix, or one is empty.
        """
        import torch

        if len(rows) != len(self):
            raise UserError(
                f"there are {len(rows)} inputs for {len(self)} rows of the prefix: choose rows, as in "
                "prefix[[0, 0, 0]]"
            )
        if not all(len(row) for row in rows):
            raise UserError("an input has no tokens: a prefix needs something to be read after it")
        longest, k = max(map(len, rows)), self.mask.shape[1]
        ids = np.full((len(rows), k + longest), pad_id, np.int64)
        mask = np.zeros(ids.shape, np.int64)
        mask[:, :k] = self.mask
        for i, row in enumerate(rows):
            ids[i, k + longest - len(row) :] = row
            mask[i, k + longest - len(row) :] = 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def save(self, path: Path) -> None:
        """Writes a safetensors file for a script without gist_jax, whole or not at all.

        Its tensors are `keys` and `values`, `[L, B, K, G, H]`, and `attention_mask`, int32 `[B, G]`.
        """
        tensors = {
            "keys": jnp.stack(self.keys),
            "values": jnp.stack(self.values),
            "attention_mask": jnp.asarray(self.mask, jnp.int32),
        }
        with atomic_write(path) as tmp:
            save_file(tensors, tmp, metadata={"prefix": json.dumps(dict(self.described))})

    def save_mlx(self, path: Path) -> None:
        """Writes MLX-LM's prompt-cache file of one row, by MLX-LM's own functions.

        Raises:
          UserError: if there are several rows, or MLX-LM is not installed.
        """
        if len(self) != 1:
            raise UserError(f"an MLX file holds one gist cache, but there are {len(self)}: choose one")
        try:
            import mlx.core as mx
            from mlx_lm.models import cache
        except ImportError:
            raise UserError("MLX needs the package mlx-lm: pip install 'gist_jax[mlx]'") from None
        layers = []
        for keys, values in zip(self.keys, self.values, strict=True):
            layer, dtype = cache.KVCache(), getattr(mx, keys.dtype.name)
            layer.keys, layer.values = (
                mx.array(np.asarray(x.astype(jnp.float32))).astype(dtype) for x in (keys, values)
            )
            layer.offset = keys.shape[2]
            layers.append(layer)
        with atomic_write(path) as tmp:
            said = {name: json.dumps(value) for name, value in self.described.items()}
            cache.save_prompt_cache(str(tmp), layers, said)
