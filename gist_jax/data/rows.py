"""From an example's ids to rows of fixed length: what is read and predicted, and where the loss is."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from gist_jax.data.fields import Example
from gist_jax.data.prompt_template import EncodedExample, Prompt, PromptTemplate

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Encode(grain.transforms.Map):
    """Turns an example's texts into ids."""

    template: PromptTemplate

    def map(self, example: Example) -> EncodedExample:
        return self.template.encode_one(example)


@dataclasses.dataclass(frozen=True)
class DecoderOnlyExample(grain.transforms.Map):
    """Turns an example into one sequence, in which the output continues the prompt.

    {instruction: "Add tea.", input: "cup", output: "cup tea"} ->
        tokens   <s> Instruction : Add tea . <GIST> Input : cup Output : cup tea
        targets  Instruction : Add tea . <GIST> Input : cup Output : cup tea </s>
        weights  0   0           0 0   0   0 0      0     0 0   0      1 1   1

    Gives tokens and targets, int32 `[T]`, and weights, float32 `[T]`: 1 where the target belongs to
    the output, the only place where there is a loss; T is at most `max_length`. If the template gives
    spans, there is span too, int32 `[T]`: 0 for what is compressed, then 1. In an example that is too
    long the prompt is cut (see `PromptTemplate.prompt`), down to half of the length, and then the
    output.

    With `predicts_prompt` the prompt is predicted too, but for the gist tokens.
    """

    template: PromptTemplate
    max_length: int
    predicts_prompt: bool = False

    def map(self, example: EncodedExample) -> Batch:
        length = self.max_length + 1  # the last id is only a target
        room = max(length - len(example.output), length // 2)
        prompt = self.template.prompt(example, room)
        ids = [*prompt, *example.output][:length]
        weights = np.zeros(len(ids), np.float32)
        weights[len(prompt) :] = 1
        row = np.asarray(ids, np.int32)
        if self.predicts_prompt:
            weights[:] = row != self.template.tokenizer.gist_id
        fields = {"tokens": row[:-1], "targets": row[1:], "weights": weights[1:]}
        return fields | _span(self.template, prompt, len(row) - 1)


def _span(template: PromptTemplate, prompt: Prompt, length: int) -> Batch:
    """The field span of a row, if it must have one."""
    if not template.gives_spans:
        return {}
    return {"span": (np.arange(length) >= prompt.head).astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class EncoderDecoderExample(grain.transforms.Map):
    """Turns an example into two sequences, one for the encoder and one for the decoder.

    {instruction: "Add tea.", input: "cup", output: "cup tea"} ->
        tokens          Instruction : Add tea. ▁ <GIST> Input : cup </s>
        decoder_tokens  <pad> cup tea
        targets         cup tea </s>
        weights         1 1 1

    Gives tokens, int32 `[T]`; decoder_tokens and targets, int32 `[S]`, the first being the second
    shifted by the start token; weights, float32 `[S]`, all 1; and span as above. Either is cut where it
    is too long, as the published pipeline does it: an end of sequence comes last in every case.
    """

    template: PromptTemplate
    max_length: int
    max_output_length: int

    def map(self, example: EncodedExample) -> Batch:
        template = self.template
        prompt = template.prompt(example, self.max_length)
        output = template.cut_output(example.output, self.max_output_length)
        return {
            "tokens": np.asarray(prompt, np.int32),
            "decoder_tokens": np.asarray([template.decoder_start_token, *output[:-1]], np.int32),
            "targets": np.asarray(output, np.int32),
            "weights": np.ones(len(output), np.float32),
            **_span(template, prompt, len(prompt)),
        }


@dataclasses.dataclass(frozen=True)
class AnyNumberOfGistTokens(grain.transforms.RandomMap):
    """Turns an example into a row with a number of gist tokens that is drawn for it.

    What is drawn depends on the seed and the example's place in the endless stream: its epoch and index.
    """

    rows: Sequence[grain.transforms.Map]  # one for each number

    def random_map(self, example: EncodedExample, rng: np.random.Generator) -> Batch:
        return self.rows[int(rng.integers(len(self.rows)))].map(example)


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
            row = np.full(self.lengths[name], 0 if name == "weights" else self.pad_id, x.dtype)
            segment = np.zeros(self.lengths[name], np.int32)
            row[: len(x)], segment[: len(x)] = x, 1
            padded[name], padded[f"{name}_segment_ids"] = row, segment
        return padded


def row_lengths(
    is_encoder_decoder: bool, max_length: int, max_output_length: int, gives_spans: bool = False
) -> dict[str, int]:
    """The length of every field of a row, see `training_batches`."""
    of_prompt = ["tokens", "segment", *(["span"] if gives_spans else [])]
    of_output = ["targets", "weights"]
    if not is_encoder_decoder:
        return dict.fromkeys(of_prompt + of_output, max_length)
    of_output = ["decoder_tokens", "decoder_segment", *of_output]
    return dict.fromkeys(of_prompt, max_length) | dict.fromkeys(of_output, max_output_length)


def make_row(
    template: PromptTemplate,
    max_length: int,
    max_output_length: int,
    choices: Sequence[int] = (),
    predicts_prompt: bool = False,
) -> grain.transforms.Map | AnyNumberOfGistTokens:
    """What turns an example's ids into the fields of a row, not padded yet.

    Args:
      choices: numbers of gist tokens to draw from, in place of the template's.
      predicts_prompt: of a decoder: whether its prompts have a loss, too.
    """
    if len(choices) > 1:
        templates = (dataclasses.replace(template, num_gist_tokens=k) for k in choices)
        sizes = max_length, max_output_length
        rows = tuple(make_row(each, *sizes, predicts_prompt=predicts_prompt) for each in templates)
        return AnyNumberOfGistTokens(rows)
    if template.is_encoder_decoder:
        return EncoderDecoderExample(template, max_length, max_output_length)
    return DecoderOnlyExample(template, max_length, predicts_prompt)


def count_cut(
    lengths: np.ndarray, template: PromptTemplate, max_length: int, max_output_length: int
) -> int:
    """How many examples are too long to stay whole.

    Args:
      lengths: of instruction, input and output in tokens, `[N, 3]`.
    """
    prompts = lengths[:, 0] + lengths[:, 1] + len(template.gist_ids)
    if template.is_encoder_decoder:
        return int(np.sum((prompts > max_length) | (lengths[:, 2] > max_output_length)))
    return int(np.sum(prompts + lengths[:, 2] > max_length + 1))
