"""What remains of compressed instructions, in memory and as a file."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.flax import save

from gist_jax.data.tokenization import GIST
from gist_jax.errors import UserError, shortened
from gist_jax.gist import Layout
from gist_jax.io import Path, atomic_write
from gist_jax.models.cache import KVCache, Memory
from gist_jax.models.model import Model

# Between the instructions of one row that were compressed one after the other, where they are one text.
THEN = f"\n{GIST}\n"
FORMAT = 3  # of files; a reader takes this one. Those before the first release are not read.


@dataclasses.dataclass(frozen=True)
class Origin:
    """What made a gist cache: a cache serves with the same base and tokenizer only."""

    base: str  # fingerprint of the weights
    tokenizer: str  # fingerprint
    adapter: str = ""  # fingerprint; empty: none
    template: str = "paper"  # how the prompt was written
    rebased: bool = False  # whether its keys are rotated back to positions 0 … k - 1


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
    # None, and no texts, inside of programs: there would be a program for every instruction.
    origin: Origin | None = dataclasses.field(default=None, metadata=dict(static=True))
    # One text a row; those of a row with several spans are joined by `THEN`.
    instructions: tuple[str, ...] = dataclasses.field(default=(), metadata=dict(static=True))

    def __len__(self) -> int:
        return self.offset.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> "GistCache":
        # NumPy raises IndexError for a row there is not, where JAX would take the last one.
        index = np.atleast_1d(np.arange(len(self))[rows])
        chosen = jax.tree.map(lambda x: x[index], self)
        texts = tuple(self.instructions[i] for i in index) if self.instructions else ()
        return dataclasses.replace(chosen, instructions=texts)

    def __repr__(self) -> str:
        rows = f"{len(self)} instruction{'' if len(self) == 1 else 's'}"
        return f"GistCache({rows}, k = {self.num_gist_tokens}, {self.nbytes:,} bytes)"

    @classmethod
    def stack(cls, caches: Sequence["GistCache"]) -> "GistCache":
        """The rows of several caches as one cache, padded to the most gist tokens that any has.

        Instructions are kept if all caches have them.

        Args:
          caches: of B₁, B₂, … rows.

        Returns:
          A cache of B₁ + B₂ + … rows, in their order.

        Raises:
          UserError: if there is none, or they were not made by one model in one dtype.
        """
        if not caches:
            raise UserError("there is no gist cache to stack")
        if len({gists._kind() for gists in caches}) > 1:
            raise UserError(
                "gist caches stack only if one model made them, in one dtype, and none or all are "
                "rebased"
            )
        most = max(gists.num_gist_tokens for gists in caches)
        rows = jax.tree.map(lambda *x: jnp.concatenate(x), *(gists._padded(most) for gists in caches))
        texts = sum((gists.instructions for gists in caches), ())
        texts = texts if len(texts) == len(rows) else ()
        return dataclasses.replace(rows, origin=caches[0].origin, instructions=texts)

    def _kind(self) -> tuple[object, ...]:
        """What rows of one cache have in common."""
        cache = self.memory.cache
        shape = len(cache.keys), cache.keys[0].shape[1::2], self.memory.states is None
        return self.origin, cache.keys[0].dtype, *shape

    def _padded(self, num_slots: int) -> "GistCache":
        """The arrays alone, with copies of the last slot, in no segment, behind those there are."""
        slots = np.minimum(np.arange(num_slots), self.num_gist_tokens - 1)
        memory = self.memory.take(jnp.broadcast_to(slots, (len(self), num_slots)))
        real = jnp.arange(num_slots) < self.num_gist_tokens
        segment, span, is_gist = (x[:, slots] for x in self.layout)
        layout = Layout(jnp.where(real, segment, 0), span, is_gist & real)
        return dataclasses.replace(self, memory=memory, layout=layout, origin=None, instructions=())

    def bare(self, dtype: DTypeLike, mesh: Mesh | None = None) -> "GistCache":
        """The arrays alone, those of floating-point numbers in `dtype`, as programs take them.

        Those of a mesh take arrays of the host, wherever these were made.
        """

        def cast(x: Any) -> Any:
            return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        bare = dataclasses.replace(self, origin=None, instructions=())
        if mesh is not None:
            bare = jax.tree.map(np.asarray, bare)
        return dataclasses.replace(bare, memory=jax.tree.map(cast, bare.memory))

    def with_heads(self, count: int) -> "GistCache":
        """The same with so many key/value heads, as a model may have more of them on a mesh."""
        memory = dataclasses.replace(self.memory, cache=self.memory.cache.with_heads(count))
        return dataclasses.replace(self, memory=memory)

    def context_kv(self, model: Model) -> KVCache:
        """The keys and values that tokens of an output see of the compressed instructions."""
        return model.context_kv(self.memory)

    @property
    def num_gist_tokens(self) -> int:
        """k, of the row that has most."""
        return self.layout.segment.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states of all rows."""
        return self.memory.nbytes

    def save(self, path: Path) -> None:
        """Writes a safetensors file, whole or not at all.

        Its tensors are keys and values `[L, B, K, G, H]`, an encoder's states `[B, G, D]`, positions,
        segment and span, int32 `[B, G]`, and offset, int32 `[B]`. Its metadata are format, k, the fields
        of `Origin`, and the instructions.

        Raises:
          OSError: if it cannot be written.
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
        described = {
            "num_gist_tokens": self.num_gist_tokens,
            "origin": None if self.origin is None else dataclasses.asdict(self.origin),
            "instructions": self.instructions,
        }
        metadata = {"format": f"gist_jax/{FORMAT}", "gist_cache": json.dumps(described)}
        with atomic_write(path) as tmp:
            tmp.write_bytes(save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> "GistCache":
        """Reads a file written by `save`.

        Raises:
          UserError: if the file is missing, damaged, or not a gist cache of this format.
        """
        try:
            with safe_open(path, framework="flax") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != f"gist_jax/{FORMAT}":
                    raise UserError(f"{path} is not a gist cache of format gist_jax/{FORMAT}")
                for name in file.keys():  # noqa: SIM118
                    if "64" in (stored := file.get_slice(name).get_dtype()):  # JAX would narrow it
                        raise UserError(f"{path} is not a sound gist cache: its {name} are {stored}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = json.loads(metadata["gist_cache"])
            origin = None if described["origin"] is None else Origin(**described["origin"])
            num_gist_tokens = described["num_gist_tokens"]
            instructions = tuple(described["instructions"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot read the gist cache {path}: {shortened(error)}") from None
        if problem := _problem(tensors, num_gist_tokens, instructions, origin):
            raise UserError(f"{path} is not a sound gist cache: {problem}")
        segment = tensors["segment"]
        cache = KVCache(tuple(tensors["keys"]), tuple(tensors["values"]))
        return cls(
            Memory(cache, tensors["positions"], tensors.get("states")),
            Layout(segment, tensors["span"], segment > 0),
            tensors["offset"],
            origin,
            instructions,
        )


_FLOATS = ("float32", "bfloat16", "float16")
_SHAPES = {  # of every tensor of a file, and whether it holds floating-point numbers
    "keys": ("LBKGH", True),
    "values": ("LBKGH", True),
    "states": ("BGD", True),
    "positions": ("BG", False),
    "segment": ("BG", False),
    "span": ("BG", False),
    "offset": ("B", False),
}


def _problem(
    tensors: Mapping[str, jax.Array],
    num_gist_tokens: object,
    instructions: Sequence[object],
    origin: Origin | None,
) -> str | None:
    """Describes what is wrong with the contents of a file; None if nothing is."""
    if missing := sorted(_SHAPES.keys() - {"states"} - tensors.keys()):
        return f"it has no tensor {missing[0]}"
    if unknown := sorted(tensors.keys() - _SHAPES.keys()):
        return f"its tensor {unknown[0]} is not known"
    sizes: dict[str, int] = {}
    for name, (letters, floating) in _SHAPES.items():
        if name not in tensors:
            continue
        x = tensors[name]
        if x.dtype.name not in (_FLOATS if floating else ("int32",)):
            return f"its {name} are of type {x.dtype.name}"
        if x.ndim != len(letters) or any(
            sizes.setdefault(letter, size) != size for letter, size in zip(letters, x.shape, strict=True)
        ):
            known = ", ".join(f"{k} = {v}" for k, v in sizes.items())
            return f"its {name} of shape {x.shape} are not [{', '.join(letters)}] with {known}"
        if floating and not bool(jnp.isfinite(x).all()):
            return f"its {name} are not all finite numbers"
    if not all(sizes.values()):
        return "it is empty"
    if len({tensors[name].dtype for name in ("keys", "values", "states") if name in tensors}) > 1:
        return "its keys, values and states are not of one type"
    positions, segment, span, offset = (
        np.asarray(tensors[name]) for name in ("positions", "segment", "span", "offset")
    )
    if not np.isin(segment, (0, 1)).all() or not segment.any(axis=1).all() or (span < 0).any():
        return "its segment and span do not describe gist tokens"
    if ((positions < 0) | (positions >= offset[:, None]))[segment > 0].any():
        return "its positions are not between 0 and its offset"
    if num_gist_tokens != sizes["G"]:
        return f"it says that k is {num_gist_tokens!r}, but holds {sizes['G']}"
    texts = all(isinstance(text, str) for text in instructions)
    if not texts or len(instructions) not in (0, sizes["B"]):
        return f"it names {len(instructions)} instructions for {sizes['B']} rows"
    if origin is not None and not (
        isinstance(origin.rebased, bool)
        and all(
            isinstance(x, str) for x in (origin.base, origin.tokenizer, origin.adapter, origin.template)
        )
    ):
        return "it does not say what made it"
    return None
