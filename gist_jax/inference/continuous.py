"""Continuous batching: rows are written in slots, and where one has ended the next begins.

The host decides which row goes into which slot, and looks at what was written every few steps; the
programs are in `gist_jax.inference.slots`. What it decides depends on the rows alone, not on time, so
that the same rows give the same outputs to the last bit.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gist_jax.gist import PAPER_MASK, MaskConfig
from gist_jax.inference.buckets import bucket, padded_rows, padded_spans
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.sampling import Sampling
from gist_jax.inference.slots import (
    NOTHING,
    Slots,
    Written,
    enter,
    make_slots,
    read_prompts,
    resized,
    write_tokens,
)
from gist_jax.models.adapter import Adapter
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params
from gist_jax.sharding import in_mesh, named_sharding, num_shards

LOOK_EVERY = 16  # steps
SMALLEST = 16  # length of a prompt, a context or a ring, as they are padded
MOST_READ = 8192  # tokens of prompts at a time


@dataclasses.dataclass(eq=False)
class Row:
    """An output that is to be written, and what has been written of it."""

    ids: Sequence[int]  # of the prompt, or of what follows the compressed instruction
    prefix: GistCache | None  # of one row
    limit: int  # tokens at most
    sampling: Sampling | None = None  # scalars; None: greedy
    seed: int = 0
    number: int = 0  # among the rows of its seed
    is_over: Callable[[list[int]], bool] | None = None  # asked of what is written, at every look
    output: list[int] = dataclasses.field(default_factory=list)
    # Why it ended: "eos", "stop" (it is over), "length", or "error" (it never began). Empty: it has not.
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Programs:
    """A model as the programs of slots take it."""

    params: Params  # with unrolled layers
    config: ModelConfig
    condition: str
    gist_token: int
    eos_token: int
    pad_id: int
    adapter: Adapter | None
    mesh: jax.sharding.Mesh | None  # of the devices that share rows and parameters
    mask: MaskConfig = PAPER_MASK
    gives_spans: bool = False  # whether spans cannot be read off the ids

    @property
    def dtype(self) -> Any:
        """Of parameters and computation."""
        return self.params["embedding"].dtype

    def prompt(self, row: Row) -> Sequence[int]:
        """What is read of a row before its output is written."""
        return row.ids if self.config.is_encoder_decoder else row.ids[:-1]

    def first(self, row: Row) -> int:
        """The token that predicts the first of a row's output."""
        return self.config.decoder_start_token if self.config.is_encoder_decoder else row.ids[-1]

    def start(self, row: Row) -> int:
        """The position of that token."""
        if self.config.is_encoder_decoder:
            return 0
        return len(row.ids) - 1 + (0 if row.prefix is None else int(np.asarray(row.prefix.offset)[0]))

    def padded(self, rows: int) -> int:
        """A number of rows that holds so many: of few different ones, and divided by the mesh."""
        shards = 1 if self.mesh is None else num_shards(self.mesh, "batch")
        return _doubled(-(-rows // shards), 1) * shards

    def place(self, rows: np.ndarray) -> Any:
        """Rows `[B, …]` split over the mesh, where there is one."""
        if self.mesh is None:
            return rows
        axes = ("batch", *["length"] * (rows.ndim - 1))
        return jax.device_put(rows, named_sharding(self.mesh, axes, rows.shape))


def write_rows(
    programs: Programs, rows: Iterable[Row], num_slots: int, look_every: int = LOOK_EVERY
) -> Iterator[Row]:
    """Writes the outputs of rows, which are taken from the iterable as slots become free.

    Args:
      num_slots: rows that are written at a time, rounded up to a power of two; where there are fewer
        rows, fewer.
      look_every: steps after which a slot whose row has ended is filled again, at the latest.

    Yields:
      Every row each time it has got longer; for the last time when it has a `reason`. One that has a
      reason from the start comes in its turn.
    """
    return _Writer(programs, iter(rows), num_slots, look_every).run()


class _Writer:
    """The slots, the rows in them, and where more rows come from."""

    def __init__(
        self, programs: Programs, source: Iterator[Row], num_slots: int, look_every: int
    ) -> None:
        self._programs, self._source, self._look_every = programs, source, look_every
        self._exhausted = False
        self._slots: Slots | None = None  # made when it is known what is kept of a prompt
        self._rows: list[Row | None] = [None] * num_slots
        self._starts = np.zeros(num_slots, np.int32)  # positions of the first tokens that are written

    def run(self) -> Iterator[Row]:
        while True:
            with in_mesh(self._programs.mesh):
                changed = self._admit()
                if any(self._rows):
                    changed += self._write()
            if not changed:
                return
            yield from changed

    def _admit(self) -> list[Row]:
        """Fills free slots with the next rows, and gives those among them that never begin."""
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        new = [] if self._exhausted else list(itertools.islice(self._source, len(free)))
        self._exhausted = len(new) < len(free)
        over, new = [row for row in new if row.reason], [row for row in new if not row.reason]
        if self._slots is None:
            size = self._programs.padded(len(new) if self._exhausted else len(self._rows))
            self._rows, self._starts = [None] * size, np.zeros(size, np.int32)
        groups = collections.defaultdict(list)
        for row, slot in zip(new, free, strict=False):
            self._rows[slot] = row
            groups[self._kind(row)].append(slot)
        self._resize()
        for (length, adapts, _), slots in groups.items():
            most = max(1, MOST_READ // length)
            for start in range(0, len(slots), most):
                self._read(slots[start : start + most], length, adapts)
        return over

    def _kind(self, row: Row) -> tuple[int, bool, int]:
        """What rows that are read together have in common: padded length, adapter, gist tokens."""
        programs = self._programs
        adapts = programs.adapter is not None and programs.gist_token in row.ids
        k = 0 if row.prefix is None else row.prefix.num_gist_tokens
        return bucket(len(programs.prompt(row)), SMALLEST), adapts, k

    def _resize(self) -> None:
        """Makes room for the rows there are, or gives up much that they do not need."""
        rows = [row for row in self._rows if row is not None]
        if self._slots is None or not rows:
            return
        size, context, ring = self._needed(rows)
        before = len(self._rows), self._slots.context.visible.shape[1], self._slots.ring.num_slots
        left = max(row.limit - len(row.output) for row in rows)
        # Another size is another program, which does not pay for a few steps.
        if not self._exhausted or size == before[0] or left < self._look_every:
            size = before[0]
            context, ring = (
                needed if needed > now or needed * 4 <= now else now
                for needed, now in zip((context, ring), before[1:], strict=True)
            )
        if (size, context, ring) == before:
            return
        kept = np.arange(before[0])
        if size < before[0]:
            kept = np.argsort([row is None for row in self._rows], kind="stable")[:size]
        self._rows, self._starts = [self._rows[slot] for slot in kept], self._starts[kept]
        self._slots = resized(self._slots, kept, context=context, ring=ring)

    def _needed(self, rows: Sequence[Row]) -> tuple[int, int, int]:
        """Slots, length of contexts, and length of the ring until the next look."""
        lengths, columns = [], []
        for row in rows:
            k = 0 if row.prefix is None else row.prefix.num_gist_tokens
            lengths.append(k + len(self._programs.prompt(row)))
            columns.append(min(len(row.output) + self._look_every, row.limit))
        context, ring = bucket(max(lengths), SMALLEST), _doubled(max(columns), SMALLEST)
        return self._programs.padded(len(rows)), context, ring

    def _read(self, slots: list[int], length: int, adapts: bool) -> None:
        """Reads the prompts of rows of one kind, which have been given slots."""
        programs, rows = self._programs, [row for row in self._rows if row is not None]
        chosen = [row for slot in slots if (row := self._rows[slot]) is not None]
        prompts: list[Sequence[int]] = [programs.prompt(row) for row in chosen]
        prefixes = [row.prefix for row in chosen if row.prefix is not None]
        size = programs.padded(len(chosen))
        missing = size - len(chosen)
        if prefixes:
            prefixes += prefixes[:1] * missing
        tokens, segment = padded_rows(prompts, programs.pad_id, (size, length))
        span = padded_spans(programs.gives_spans, [row.ids for row in chosen], tokens.shape)
        read = read_prompts(
            programs.params,
            programs.place(tokens),
            programs.place(segment),
            tuple(prefix.bare(programs.dtype, programs.mesh) for prefix in prefixes),
            config=programs.config,
            condition=programs.condition,
            gist_token=programs.gist_token,
            mask=programs.mask,
            span=None if span is None else programs.place(span),
            adapter=programs.adapter if adapts else None,
        )
        if self._slots is None:
            _, context, ring = self._needed(rows)
            self._slots = make_slots(read, num_slots=len(self._rows), context=context, ring=ring)
        self._slots = enter(self._slots, read, np.array([*slots, *[len(self._rows)] * missing]))
        for slot, row in zip(slots, chosen, strict=True):
            self._starts[slot] = programs.start(row)

    def _write(self) -> list[Row]:
        """Writes some tokens, and gives the rows that have got longer."""
        programs, slots, rows = self._programs, self._slots, self._rows
        assert slots is not None
        live = [row for row in rows if row is not None]
        left = max(row.limit - len(row.output) for row in live)
        steps = min(self._look_every, left)
        # Of many rows some end all the time: better a few prompts are read together.
        enough = max(1, len(rows) // 8)
        if self._exhausted:  # what can be done earlier than at the next look is to halve the slots
            half = len(rows) // 2
            halves = len(live) > half and left >= self._look_every
            enough = len(live) - half if halves else len(rows)
        self._slots, tokens = write_tokens(
            programs.params,
            slots,
            self._written(),
            _sampling(rows),
            np.int32(steps),
            np.int32(enough),
            np.int32(programs.eos_token),
            config=programs.config,
            most=self._look_every,
        )
        for slot, new in enumerate(np.asarray(tokens)):
            row = rows[slot]
            if row is None:
                continue
            row.output += new[new != NOTHING].tolist()
            if row.is_over is not None and row.is_over(row.output):
                row.reason = "stop"
            elif row.output[-1] == programs.eos_token:
                row.reason = "eos"
            elif len(row.output) == row.limit:
                row.reason = "length"
            if row.reason:
                rows[slot] = None
        return live

    def _written(self) -> Written:
        """Where the rows in the slots have come to."""

        def column(value: Callable[[Row], Any], dtype: Any = np.int32) -> np.ndarray:
            return np.array([0 if row is None else value(row) for row in self._rows], dtype)

        count = column(lambda row: len(row.output))
        return Written(
            token=column(lambda row: row.output[-1] if row.output else self._programs.first(row)),
            position=self._starts + count,
            count=count,
            limit=column(lambda row: row.limit),
            live=column(lambda row: True, bool),
            seed=column(lambda row: row.seed % 2**32, np.uint32),
            number=column(lambda row: row.number),
        )


def _sampling(rows: Sequence[Row | None]) -> Sampling | None:
    """How the rows are sampled, arrays of `[S, 1]`; None if all are greedy."""
    if not any(row is not None and row.sampling is not None for row in rows):
        return None
    greedy = Sampling(np.float32(0), np.int32(0), np.float32(1))
    each = [greedy if row is None or row.sampling is None else row.sampling for row in rows]
    return jax.tree.map(lambda *values: np.array(values)[:, None], *each)


def _doubled(size: int, smallest: int) -> int:
    """The smallest of `smallest`, twice that, … that holds `size`."""
    while smallest < size:
        smallest *= 2
    return smallest
