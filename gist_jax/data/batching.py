"""Examples to fixed-shape training batches, through Grain."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from gist_jax.data.mixture import Mixture, Selection
from gist_jax.data.prompt_template import EncodedExample, PromptTemplate
from gist_jax.data.rows import AnyNumberOfGistTokens, Batch, Encode, Pad, make_row, row_lengths
from gist_jax.data.sources import Examples
from gist_jax.data.token_cache import TokenCache
from gist_jax.data.windows import Windows

WINDOW = 16  # batches whose examples are sorted by length together
CHUNK = 64  # examples that are read, and that a worker process hands over, at a time


def _named(batch: dict[str, np.ndarray]) -> Batch:
    """Grain's names to ours. In packed rows pads are zeros, where the weights are zero too."""
    named = {name: x for name, x in batch.items() if not name.endswith(("_ids", "_positions"))}
    for ours, of in (("segment", "tokens"), ("decoder_segment", "decoder_tokens")):
        if of in named:
            named[ours] = batch[f"{of}_segment_ids"]
    return named


def _batch(rows: list[Batch]) -> Batch:
    """Rows that are padded to one length, as a batch."""
    return _named({name: np.stack([row[name] for row in rows]) for name in rows[0]})


class _Together(grain.MapDataset):
    """Lists of some rows of every batch, read together: many records a time are read far faster."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: Sequence[int] | None = None):
        super().__init__(parent)
        self._batch_size = batch_size
        self._rows = range(batch_size) if rows is None else rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return self._parent._getitems([index * self._batch_size + row for row in self._rows])


class _Ahead(grain.MapDataset):
    """The elements one by one, of which as many as a chunk has are read together."""

    def __init__(self, parent: grain.MapDataset):
        super().__init__(parent)
        self._chunks = _Together(parent, CHUNK)
        self._read: tuple[int, Any] = (-1, [])

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        chunk, place = divmod(index, CHUNK)
        if self._read[0] != chunk:
            self._read = chunk, self._chunks[chunk]
        return self._read[1][place]


@dataclasses.dataclass(frozen=True)
class _Bucketed(grain.experimental.FlatMapTransform):
    """Batches of the examples of a window, each padded to the shortest bucket that holds them.

    The examples of a batch are of similar lengths, so that little is padded; the batches of a window
    come in a random order.
    """

    lengths: dict[str, int]  # of the fields of a row, the longest there are
    buckets: Sequence[int]
    batch_size: int
    pad_id: int
    max_fan_out: int = WINDOW

    def flat_map(self, element: list[Batch]) -> list[Batch]:
        ordered = sorted(element, key=lambda row: len(row["tokens"]))
        count = len(ordered) // self.batch_size
        chosen = np.random.default_rng(int(sum(row["tokens"].sum() for row in element)))
        return [
            self._batch(ordered[i * self.batch_size : (i + 1) * self.batch_size])
            for i in chosen.permutation(count)
        ]

    def _batch(self, rows: list[Batch]) -> Batch:
        lengths = {}
        for name, longest in self.lengths.items():
            needed = max(len(row[name]) for row in rows)
            lengths[name] = min([x for x in self.buckets if needed <= x < longest], default=longest)
        padded = [Pad(lengths, self.pad_id).map(row) for row in rows]
        return _batch(padded)


@dataclasses.dataclass(frozen=True)
class _Unchunk(grain.experimental.FlatMapTransform):
    max_fan_out: int = CHUNK

    def flat_map(self, element: list[Batch]) -> list[Batch]:
        return element


def _begin_worker(index: int, count: int) -> None:
    """Leaves signals to the process that trains, and ends with it, however it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _encoded(
    examples: Examples | TokenCache | Windows, template: PromptTemplate, seed: int
) -> grain.MapDataset:
    """An endless, shuffled stream of `EncodedExample`; a mixture draws its parts in proportion.

    Of any so many examples of a mixture each part has its share, to less than one example.
    """
    if isinstance(examples, Mixture):
        parts = [_encoded(part, template, seed + i) for i, part in enumerate(examples.parts)]
        return grain.MapDataset.select_from_datasets(parts, Selection(examples.weights))
    dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
    is_encoded = isinstance(examples, TokenCache | Windows)
    return dataset if is_encoded else dataset.map(Encode(template))


def batches_in_order(
    examples: Sequence[EncodedExample],
    template: PromptTemplate,
    *,
    batch_size: int,
    max_length: int,
    max_output_length: int,
    predicts_prompt: bool = False,
) -> Iterator[Batch]:
    """The examples in their order, a row each, as `training_batches` gives them.

    The last batch is filled up with rows of padding.
    """
    sizes = max_length, max_output_length
    lengths = row_lengths(template.is_encoder_decoder, *sizes, template.gives_spans)
    pad = Pad(lengths, template.tokenizer.pad_id)
    row = make_row(template, *sizes, predicts_prompt=predicts_prompt)
    for start in range(0, len(examples), batch_size):
        rows = [pad.map(row.map(each)) for each in examples[start : start + batch_size]]
        empty = {name: np.zeros_like(x) for name, x in rows[0].items()}
        yield _batch(rows + [empty] * (batch_size - len(rows)))


def training_batches(
    examples: Examples | TokenCache | Windows,
    template: PromptTemplate,
    *,
    batch_size: int,
    max_length: int,
    max_output_length: int,
    pack: bool,
    seed: int,
    gist_token_choices: Sequence[int] = (),
    predicts_prompt: bool = False,
    buckets: Sequence[int] = (),
    workers: int = 0,
    rows: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """An endless, shuffled, checkpointable stream of batches.

    Every batch is a dict of arrays `[batch_size, max_length]`, or of shorter rows with `buckets`:
    tokens, targets and segment, int32, and weights, float32. For an encoder-decoder targets and weights
    are `[batch_size, max_output_length]`, like decoder_tokens and decoder_segment, int32, which it has
    besides. If the template gives spans, there is span too, int32, of the tokens. With `pack` a row
    holds as many whole examples as fit, each a segment of its own; otherwise one example a row, so that
    `batch_size` counts examples.

    Args:
      gist_token_choices: numbers of gist tokens of which every example draws one, in place of the
        template's.
      buckets: shorter lengths that the rows of a batch may have, where its examples are short.
      predicts_prompt: of a decoder: whether its prompts have a loss, too.
      workers: processes that tokenize; 0: this one.
      rows: which rows of every batch this process needs; all by default. Packed rows depend on all
        examples before them, and bucketed ones on those of their window, so each process makes whole
        batches then.

    The iterator's `get_state` and `set_state` make a stream resume exactly where it was, with the same
    or other rows.
    """
    rows = np.arange(batch_size) if rows is None else rows
    sizes = max_length, max_output_length
    lengths = row_lengths(template.is_encoder_decoder, *sizes, template.gives_spans)
    lengths = {name: n for name, n in lengths.items() if not name.endswith("segment")}
    dataset = _encoded(examples, template, seed)
    row = make_row(template, *sizes, gist_token_choices, predicts_prompt)
    if isinstance(row, AnyNumberOfGistTokens):
        dataset = dataset.random_map(row, seed=seed)
    else:
        dataset = dataset.map(row)
    pad_id = template.tokenizer.pad_id

    def of_workers(dataset: grain.IterDataset) -> grain.IterDataset:
        if not workers:
            return dataset
        if not flags.FLAGS.is_parsed():  # grain looks at its own
            flags.FLAGS.mark_as_parsed()
        return dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_begin_worker
        )

    # One thread prefetches. Tokenizing is Python: more threads would only contend for its lock.
    one_thread = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    # To hand small examples over from a thread takes longer than to tokenize them.
    no_thread = grain.ReadOptions(num_threads=0)
    if not pack and not buckets:
        padded = _Together(dataset.map(Pad(lengths, pad_id)), batch_size, rows.tolist())
        return iter(of_workers(padded.map(_batch).to_iter_dataset(one_thread)))
    if pack:
        if workers:
            chunks = _Together(dataset, CHUNK).to_iter_dataset(one_thread)
            singles = grain.experimental.FlatMapIterDataset(of_workers(chunks), _Unchunk())
        else:
            singles = _Ahead(dataset).to_iter_dataset(no_thread)
        packed = grain.experimental.FirstFitPackIterDataset(
            singles, length_struct=lengths, num_packing_bins=batch_size
        )
        batches = packed.batch(batch_size, drop_remainder=True).map(_named)
    else:
        windows = _Together(dataset, WINDOW * batch_size).to_iter_dataset(one_thread)
        bucketed = _Bucketed(lengths, tuple(buckets), batch_size, pad_id)
        batches = grain.experimental.FlatMapIterDataset(of_workers(windows), bucketed)
    return iter(batches.map(lambda batch: {name: x[rows] for name, x in batch.items()}))
