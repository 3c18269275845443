"""Examples to fixed-shape training batches, through Grain."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from gist_jax.data.sources import Example
from gist_jax.data.tokenization import Tokenizer, output_ids, prompt_ids

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tokenize(grain.transforms.Map):
    """One example to next-token prediction arrays of its own length, at most `max_length`.

    Gives tokens and targets, int32 `[T]`, and weights, float32 `[T]`: 1 where the target belongs to
    the output, the only place where there is a loss. In an example that is too long the prompt is cut
    (see `prompt_ids`), down to half of the length, and then the output.
    """

    tokenizer: Tokenizer
    num_gist_tokens: int
    max_length: int

    def map(self, example: Example) -> Batch:
        length = self.max_length + 1  # the last id is only a target
        output = output_ids(self.tokenizer, example["output"])
        prompt = prompt_ids(
            self.tokenizer,
            example["instruction"],
            example["input"],
            self.num_gist_tokens,
            max(length - len(output), length // 2),
        )
        ids = (prompt + output)[:length]
        weights = np.zeros(len(ids), np.float32)
        weights[len(prompt) :] = 1
        ids = np.asarray(ids, np.int32)
        return {"tokens": ids[:-1], "targets": ids[1:], "weights": weights[1:]}


@dataclasses.dataclass(frozen=True)
class Pad(grain.transforms.Map):
    """Pads one example at the end and adds segment, 1 where there are tokens."""

    length: int
    pad_id: int

    def map(self, example: Batch) -> Batch:
        room = self.length - len(example["tokens"])
        example = {**example, "segment": np.ones(len(example["tokens"]), np.int32)}
        fill = {"tokens": self.pad_id, "targets": self.pad_id, "weights": 0, "segment": 0}
        return {k: np.pad(v, (0, room), constant_values=fill[k]) for k, v in example.items()}


def _packed_batch(batch: dict[str, np.ndarray]) -> Batch:
    """Grain's names for packed rows to ours. Pads are zeros, where the weights are zero too."""
    return {
        "tokens": batch["tokens"],
        "targets": batch["targets"],
        "weights": batch["weights"],
        "segment": batch["tokens_segment_ids"],
    }


def training_batches(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    num_gist_tokens: int,
    batch_size: int,
    max_length: int,
    pack: bool,
    seed: int,
) -> grain.DatasetIterator:
    """An endless, shuffled, checkpointable stream of batches.

    Every batch is a dict of arrays `[batch_size, max_length]`: tokens, targets and segment, int32,
    and weights, float32. With `pack` a row holds as many whole examples as fit, each a segment of its
    own; otherwise one example a row, so that `batch_size` counts examples.

    The iterator's `get_state` and `set_state` make a stream go on exactly where it was.
    """

    # One thread reads ahead. Tokenizing is Python: more threads would only contend for its lock.
    def ahead(elements: int) -> grain.ReadOptions:
        return grain.ReadOptions(num_threads=1, prefetch_buffer_size=elements)

    dataset = (
        grain.MapDataset.source(examples)
        .seed(seed)
        .shuffle()
        .repeat()
        .map(Tokenize(tokenizer, num_gist_tokens, max_length))
    )
    if pack:
        lengths = dict.fromkeys(("tokens", "targets", "weights"), max_length)
        packed = grain.experimental.FirstFitPackIterDataset(
            dataset.to_iter_dataset(ahead(4 * batch_size)),
            length_struct=lengths,
            num_packing_bins=batch_size,
        )
        return iter(packed.batch(batch_size, drop_remainder=True).map(_packed_batch))
    padded = dataset.map(Pad(max_length, tokenizer.pad_id)).batch(batch_size, drop_remainder=True)
    return iter(padded.to_iter_dataset(ahead(2)))
