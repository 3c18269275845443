"""Examples to fixed-shape training batches, through Grain."""

import dataclasses
from typing import Any

import grain
import numpy as np

from gist_jax.data.prompt_template import PromptTemplate
from gist_jax.data.sources import Example, Examples

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DecoderOnlyExample(grain.transforms.Map):
    """Turns an example into one sequence, in which the output continues the prompt.

    {instruction: "Add tea.", input: "cup", output: "cup tea"} ->
        tokens   <s> Instruction : Add tea . <GIST> Input : cup Output : cup tea
        targets  Instruction : Add tea . <GIST> Input : cup Output : cup tea </s>
        weights  0   0           0 0   0   0 0      0     0 0   0      1 1   1

    Gives tokens and targets, int32 `[T]`, and weights, float32 `[T]`: 1 where the target belongs to
    the output, the only place where there is a loss; T is at most `max_length`. In an example that is
    too long the prompt is cut (see `PromptTemplate.prompt_ids`), down to half of the length, and then
    the output.
    """

    template: PromptTemplate
    max_length: int

    def map(self, example: Example) -> Batch:
        length = self.max_length + 1  # the last id is only a target
        output = self.template.output_ids(example["output"])
        room = max(length - len(output), length // 2)
        prompt = self.template.prompt_ids(example["instruction"], example["input"], room)
        ids = (prompt + output)[:length]
        weights = np.zeros(len(ids), np.float32)
        weights[len(prompt) :] = 1
        row = np.asarray(ids, np.int32)
        return {"tokens": row[:-1], "targets": row[1:], "weights": weights[1:]}


@dataclasses.dataclass(frozen=True)
class EncoderDecoderExample(grain.transforms.Map):
    """Turns an example into two sequences, one for the encoder and one for the decoder.

    {instruction: "Add tea.", input: "cup", output: "cup tea"} ->
        tokens          Instruction : Add tea. ▁ <GIST> Input : cup </s>
        decoder_tokens  <pad> cup tea
        targets         cup tea </s>
        weights         1 1 1

    Gives tokens, int32 `[T]`; decoder_tokens and targets, int32 `[S]`, the first being the second
    shifted by the start token; and weights, float32 `[S]`, all 1. Either is cut where it is too long,
    as the published pipeline does it: an end of sequence comes last in every case.
    """

    template: PromptTemplate
    max_length: int
    max_output_length: int

    def map(self, example: Example) -> Batch:
        template = self.template
        prompt = template.prompt_ids(example["instruction"], example["input"], self.max_length)
        output = template.output_ids(example["output"], self.max_output_length)
        return {
            "tokens": np.asarray(prompt, np.int32),
            "decoder_tokens": np.asarray([template.decoder_start_token, *output[:-1]], np.int32),
            "targets": np.asarray(output, np.int32),
            "weights": np.ones(len(output), np.float32),
        }


@dataclasses.dataclass(frozen=True)
class Pad(grain.transforms.Map):
    """Pads an example at the end, and says where its tokens are, as packing does.

    {tokens: [5, 6]} -> {tokens: [5, 6, pad], tokens_segment_ids: [1, 1, 0]} where 3 are wanted.
    """

    lengths: dict[str, int]
    pad_id: int

    def map(self, example: Batch) -> Batch:
        padded = {}
        for name, x in example.items():
            room = self.lengths[name] - len(x)
            padded[name] = np.pad(x, (0, room), constant_values=0 if name == "weights" else self.pad_id)
            padded[f"{name}_segment_ids"] = np.pad(np.ones(len(x), np.int32), (0, room))
        return padded


def _named(batch: dict[str, np.ndarray]) -> Batch:
    """Grain's names to ours. In packed rows pads are zeros, where the weights are zero too."""
    named = {name: x for name, x in batch.items() if not name.endswith(("_ids", "_positions"))}
    for ours, of in (("segment", "tokens"), ("decoder_segment", "decoder_tokens")):
        if of in named:
            named[ours] = batch[f"{of}_segment_ids"]
    return named


class _Rows(grain.MapDataset):
    """Some rows of every batch, in the order of the batches."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: np.ndarray):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Any:
        batch, row = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + int(self._rows[row])]


def row_lengths(is_encoder_decoder: bool, max_length: int, max_output_length: int) -> dict[str, int]:
    """The length of every field of a row, see `training_batches`."""
    if not is_encoder_decoder:
        return dict.fromkeys(("tokens", "segment", "targets", "weights"), max_length)
    of_output = ("decoder_tokens", "decoder_segment", "targets", "weights")
    return {"tokens": max_length, "segment": max_length, **dict.fromkeys(of_output, max_output_length)}


def training_batches(
    examples: Examples,
    template: PromptTemplate,
    *,
    batch_size: int,
    max_length: int,
    max_output_length: int,
    pack: bool,
    seed: int,
    rows: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """An endless, shuffled, checkpointable stream of batches.

    Every batch is a dict of arrays `[batch_size, max_length]`: tokens, targets and segment, int32,
    and weights, float32. For an encoder-decoder targets and weights are
    `[batch_size, max_output_length]`, like decoder_tokens and decoder_segment, int32, which it has
    besides. With `pack` a row holds as many whole examples as fit, each a segment of its own; otherwise
    one example a row, so that `batch_size` counts examples.

    Args:
      rows: which rows of every batch this process needs; all by default. Packed rows depend on all
        examples before them, so each process packs whole batches.

    The iterator's `get_state` and `set_state` make a stream resume exactly where it was, with the same
    or other rows.
    """

    rows = np.arange(batch_size) if rows is None else rows
    tokenize: grain.transforms.Map = DecoderOnlyExample(template, max_length)
    if template.is_encoder_decoder:
        tokenize = EncoderDecoderExample(template, max_length, max_output_length)
    lengths = row_lengths(template.is_encoder_decoder, max_length, max_output_length)
    lengths = {name: n for name, n in lengths.items() if not name.endswith("segment")}
    dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat().map(tokenize)
    if pack:
        packed = grain.experimental.FirstFitPackIterDataset(
            # To hand small examples over from a thread takes longer than to tokenize them.
            dataset.to_iter_dataset(grain.ReadOptions(num_threads=0)),
            length_struct=lengths,
            num_packing_bins=batch_size,
        )
        batches = packed.batch(batch_size, drop_remainder=True).map(_named)
        return iter(batches.map(lambda batch: {name: x[rows] for name, x in batch.items()}))
    padded = _Rows(dataset.map(Pad(lengths, template.tokenizer.pad_id)), batch_size, rows)
    padded = padded.batch(len(rows), drop_remainder=True)
    # One thread prefetches. Tokenizing is Python: more threads would only contend for its lock.
    one_thread = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(padded.map(_named).to_iter_dataset(one_thread))
