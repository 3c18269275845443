"""What remains of compressed instructions, in memory and as a file."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import save

from gist_jax.errors import UserError
from gist_jax.files import whole_file
from gist_jax.gist import Layout
from gist_jax.models.cache import KVCache, Memory

FORMAT = "gist_jax/2"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GistCache:
    """A batch of B compressed instructions, padded to G gist tokens each.

    Index it (`gists[2]`, `gists[:3]`, `gists[[0, 0, 1]]`) to choose rows; a batch of one serves any
    number of inputs without being copied.
    """

    memory: Memory  # of G slots: keys, values, positions and, of an encoder, final states
    layout: Layout  # [B, G]; segment 0 where a row has fewer gist tokens
    offset: jax.Array  # int32 [B]: position of the token that follows
    # Of the model and the tokenizer that made it.
    fingerprint: str = dataclasses.field(metadata=dict(static=True))

    def __len__(self) -> int:
        return self.offset.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int]) -> "GistCache":
        # NumPy raises IndexError for a row there is not, where JAX would take the last one.
        index = np.atleast_1d(np.arange(len(self))[rows])
        return jax.tree.map(lambda x: x[index], self)

    @property
    def num_gist_tokens(self) -> int:
        """Of the row that has most."""
        return self.layout.segment.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states of all rows."""
        return self.memory.nbytes

    def save(self, path: str | pathlib.Path) -> None:
        """Writes a safetensors file: keys and values `[L, B, K, G, H]`, the states of an encoder
        `[B, G, D]`, positions, layout and offset.

        The file appears whole or not at all.
        """
        tensors = {
            "keys": jnp.stack(self.memory.cache.keys),
            "values": jnp.stack(self.memory.cache.values),
            "positions": self.memory.positions,
            "segment": self.layout.segment,
            "span": self.layout.span,
            "offset": self.offset,
        }
        if self.memory.states is not None:
            tensors["states"] = self.memory.states
        with whole_file(path) as beside:
            beside.write_bytes(save(tensors, {"format": FORMAT, "fingerprint": self.fingerprint}))

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "GistCache":
        """Reads a file written by `save`.

        Raises:
          ValueError: if the file is missing, truncated or not a gist cache.
        """
        try:
            with safe_open(path, framework="flax") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read the gist cache {path}: {error}") from None
        complete = {"keys", "values", "positions", "segment", "span", "offset"} <= tensors.keys()
        if metadata.get("format") != FORMAT or "fingerprint" not in metadata or not complete:
            raise UserError(f"{path} is not a gist cache of format {FORMAT}")
        segment = tensors["segment"]
        cache = KVCache(tuple(tensors["keys"]), tuple(tensors["values"]))
        return cls(
            Memory(cache, tensors["positions"], tensors.get("states")),
            Layout(segment, tensors["span"], segment > 0),
            tensors["offset"],
            metadata["fingerprint"],
        )
