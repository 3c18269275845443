"""Prompts as token ids: in the form of the paper, or by the tokenizer's chat template.

The paper's:

    decoder-only     <s> Instruction: … <GIST> … Input: … \\n Output:      … </s>
    encoder-decoder      Instruction: … ▁ <GIST> … Input: … </s>           … </s>

The published pipeline writes line breaks around the gist tokens. Of these LLaMA's tokenizer leaves
nothing, and T5's the one before the gist tokens, as a lone ▁. So the text before, after, and in the
output is tokenized by itself: what follows the gist tokens never depends on the instruction, which is
what lets caches be reused. For T5 it decodes and encodes a prompt once more, which loses the white space
before punctuation and contractions.

Of a chat the instruction is the system message, and the gist tokens stand where it ends:

    <|im_start|>system … <GIST> … <|im_end|> <|im_start|>user … <|im_end|> <|im_start|>assistant …
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gist_jax.data.chat_template import ChatTemplate, Segments
from gist_jax.data.fields import DOCUMENT, Example
from gist_jax.data.tokenization import Tokenizer
from gist_jax.errors import UserError
from gist_jax.gist import AFTER, BEFORE
from gist_jax.models.config import ModelConfig, T5Config

PAPER, CHAT = "paper", "chat"

# Before these the decoder of that day's transformers removed spaces, in this order.
UNSPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def clean_up_tokenization_spaces(text: str) -> str:
    """Text as it comes out of being encoded and decoded by T5's tokenizer as published.

    "a cup , please ." -> "a cup, please."
    """
    text = " ".join(text.split())
    for found in UNSPACED:
        text = text.replace(found, found.strip())
    return text


class EncodedExample(NamedTuple):
    """The ids of an example's parts, for any number of gist tokens and any length."""

    instruction: Sequence[int]  # up to where the gist tokens stand
    input: Sequence[int]  # from behind them to where the output begins
    output: Sequence[int]  # with the end of sequence
    own: int  # so many ids of `input` come before what asks for the output


class Prompt(list[int]):
    """Ids of a prompt, of which the first are compressed together; what is added comes after these."""

    def __init__(self, head: Iterable[int], rest: Iterable[int] = ()) -> None:
        super().__init__(head)
        self.head = len(self)  # so many are compressed
        self.extend(rest)

    def __add__(self, rest: list[int]) -> "Prompt":  # type: ignore[override]  # of numbers alone
        return Prompt(self[: self.head], [*self[self.head :], *rest])


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """How the prompts of a model are written."""

    tokenizer: Tokenizer
    num_gist_tokens: int
    # What the decoder of an encoder-decoder reads first; None if the output continues the prompt.
    decoder_start_token: int | None = None
    chat: ChatTemplate | None = None  # in place of the paper's form
    placement: str = AFTER  # of gist tokens, see `gist_jax.gist.MaskConfig`

    @classmethod
    def of_model(
        cls,
        config: ModelConfig,
        tokenizer: Tokenizer,
        num_gist_tokens: int,
        kind: str = PAPER,
        placement: str = AFTER,
    ) -> "PromptTemplate":
        """The template of a model.

        Args:
          kind: "paper", "chat", or a `name`.

        Raises:
          UserError: if the tokenizer has no chat template, or another than the one that is named, or
            gist tokens would see nothing.
        """
        start = config.decoder_start_token if isinstance(config, T5Config) else None
        if placement == BEFORE and start is None:
            raise UserError(
                "mask.placement is 'before', which is for encoders: a decoder's gist tokens would see "
                "nothing of the instruction after them"
            )
        if kind == PAPER:
            return cls(tokenizer, num_gist_tokens, start, placement=placement)
        if start is not None:
            raise UserError("data.template is 'chat', but an encoder-decoder has no chat template")
        chat = ChatTemplate.of_tokenizer(tokenizer)
        if kind not in (CHAT, chat.name):
            raise UserError(f"the tokenizer's chat template is {chat.name}, not {kind}")
        return cls(tokenizer, num_gist_tokens, chat=chat, placement=placement)

    @property
    def name(self) -> str:
        """What model.json and gist caches say of it: "paper", or "chat-" and a hash."""
        return PAPER if self.chat is None else self.chat.name

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the output is a sequence of its own."""
        return self.decoder_start_token is not None

    def instruction_ids(
        self, instruction: str, max_length: int | None = None, *, continues: bool = False
    ) -> Prompt:
        """Ids of what is compressed: the instruction, and the gist tokens it is compressed into.

        Args:
          max_length: cut the instruction so that there are at most so many ids; gist tokens always
            stay.
          continues: whether it stands behind the gist tokens of another instruction. Then nothing
            begins: there is no `<s>`, and a chat's system message goes on.

        Raises:
          ValueError: if the instruction is empty.
        """
        return self._with_gists(self._ids(self._instruction(instruction, continues)), max_length)

    def input_ids(self, text: str) -> list[int]:
        """Ids of what follows the gist tokens, up to where the output begins."""
        return self._ids(self._input(text)[0])

    def output_ids(self, text: str, max_length: int | None = None) -> list[int]:
        """Ids of the output, at most `max_length`, which end with the end of sequence."""
        return self.cut_output(self._ids(self._output(text)), max_length)

    def prompt_ids(self, instruction: str, text: str, max_length: int) -> Prompt:
        """Ids of a whole prompt, at most `max_length`, cut as `prompt` cuts it."""
        example = {"instruction": instruction, "input": text, "output": ""}
        return self.prompt(self.encode_one(example), max_length)

    def encode_one(self, example: Example) -> EncodedExample:
        """The ids of an example."""
        instruction, whole, output, own = map(self._ids, self._parts(example))
        return EncodedExample(instruction, whole, output, len(own))

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """The ids of examples, many at a time: tokenizers are faster so, and use all cores."""
        segments = [segment for example in examples for segment in self._parts(example)]
        texts = [part for segment in segments for part in segment if isinstance(part, str)]
        encoded = iter(self.tokenizer.encode_batch(texts))
        ids = [
            [i for part in segment for i in (next(encoded) if isinstance(part, str) else (part,))]
            for segment in segments
        ]
        parts = (ids[n : n + 4] for n in range(0, len(ids), 4))
        return [EncodedExample(a, b, c, own=len(d)) for a, b, c, d in parts]

    def prompt(self, example: EncodedExample, max_length: int) -> Prompt:
        """Ids of an example's prompt with gist tokens, at most `max_length`.

        Where there are too many, the end of the input goes first, then that of the instruction. The
        gist tokens and what asks for the output stay.
        """
        head, rest = self._with_gists(example.instruction), list(example.input)
        if len(head) + len(rest) <= max_length:
            return head + rest
        # What follows the input's own text: the line break and "Output:", or the end of sequence.
        asking = rest[example.own :]
        head = self._with_gists(example.instruction, max_length - len(asking))
        room = max_length - len(head) - len(asking)
        if room <= self._before_input:  # half of what opens a message would not be one
            return head + asking
        return head + rest[: min(room, example.own)] + asking

    @functools.cached_property
    def _before_input(self) -> int:
        """The number of ids between the gist tokens and the text of an input; 0 where they are text."""
        return 0 if self.chat is None else len(self._ids(self.chat.before_input()))

    def cut_output(self, ids: Sequence[int], max_length: int | None = None) -> list[int]:
        """Ids of an output, at most `max_length`: the end of sequence stays."""
        if max_length is None or len(ids) <= max_length:
            return list(ids)
        return [*ids[: max_length - 1], self.tokenizer.eos_id]

    @property
    def gives_spans(self) -> bool:
        """Whether the spans of a prompt must be given, as they cannot be read off its ids."""
        return self.placement != AFTER

    @property
    def gist_ids(self) -> list[int]:
        """Ids of the gist tokens, and of the lone space before them that T5's prompts have."""
        gists = [self.tokenizer.gist_id] * self.num_gist_tokens
        space = self.space_before_gists
        return gists if not gists or space is None else [space, *gists]

    @property
    def space_before_gists(self) -> int | None:
        """The id of the lone space that T5's prompts have before their gist tokens; None: none.

        Nor have those whose gist tokens stand elsewhere than in the paper.
        """
        return self.tokenizer.space_id if self.is_encoder_decoder and not self.gives_spans else None

    def _with_gists(self, ids: Sequence[int], max_length: int | None = None) -> Prompt:
        gists = self.gist_ids if ids else []  # of documents nothing is compressed
        if max_length is not None:
            ids = ids[: max(max_length - len(gists), 0)]
        if self.placement == AFTER:
            return Prompt([*ids, *gists])
        if self.placement == BEFORE:
            return Prompt([*gists, *ids])
        # As evenly as can be: with the i-th of k gist tokens i/k of the instruction has come.
        parts, start = [], 0
        for i, gist_id in enumerate(gists, 1):
            end = -(-len(ids) * i // len(gists))
            parts += [*ids[start:end], gist_id]
            start = end
        return Prompt([*parts, *ids[start:]])

    def _parts(self, example: Example) -> tuple[Segments, Segments, Segments, Segments]:
        """Instruction, input, output, and what of the input comes before what asks for the output."""
        if DOCUMENT in example:  # which has no prompt, see `gist_jax.data.windows`
            return [], [], [example[DOCUMENT], self.tokenizer.eos_id], []
        whole, own = self._input(example["input"])
        return self._instruction(example["instruction"]), whole, self._output(example["output"]), own

    def _instruction(self, instruction: str, continues: bool = False) -> Segments:
        if not instruction.strip():
            raise UserError("the instruction is empty: there is nothing to compress")
        if self.chat is not None:
            return (self.chat.continuation if continues else self.chat.instruction)(instruction)
        text = self._cleaned(f"Instruction: {instruction}".rstrip())
        bos = None if self.is_encoder_decoder or continues else self.tokenizer.bos_id
        return [text] if bos is None else [bos, text]

    def _input(self, text: str) -> tuple[Segments, Segments]:
        """What follows the gist tokens, and what of that comes before what asks for the output."""
        if self.chat is not None:
            return self.chat.input(text)
        own: Segments = [self._cleaned(f"Input: {text}")] if text.strip() else []
        if self.is_encoder_decoder:
            return [*own, self.tokenizer.eos_id], own
        return [f"Input: {text}\nOutput:" if own else "Output:"], own

    def _output(self, text: str) -> Segments:
        return [text if self.chat is None else self.chat.output(text), self.tokenizer.eos_id]

    def _cleaned(self, text: str) -> str:
        return clean_up_tokenization_spaces(text) if self.is_encoder_decoder else text

    def _ids(self, segments: Segments) -> list[int]:
        encode = self.tokenizer.encode
        return [i for part in segments for i in (encode(part) if isinstance(part, str) else (part,))]
