"""The prompt form of the paper, as token ids.

    decoder-only     <s> Instruction: … <GIST> … Input: … \\n Output:      … </s>
    encoder-decoder      Instruction: … ▁ <GIST> … Input: … </s>           … </s>

The published pipeline writes line breaks around the gist tokens. Of these LLaMA's tokenizer leaves
nothing, and T5's the one before the gist tokens, as a lone ▁. So the text before, after, and in the
output is tokenized by itself: what follows the gist tokens never depends on the instruction, which is
what lets caches be reused. For T5 it decodes and encodes a prompt once more, which loses the white space
before punctuation and contractions.
"""

import dataclasses

from gist_jax.data.tokenization import Tokenizer
from gist_jax.errors import UserError
from gist_jax.models.config import ModelConfig, T5Config

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


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """How the prompts of a model are written."""

    tokenizer: Tokenizer
    num_gist_tokens: int
    # What the decoder of an encoder-decoder reads first; None if the output continues the prompt.
    decoder_start_token: int | None = None

    @classmethod
    def of_model(
        cls, config: ModelConfig, tokenizer: Tokenizer, num_gist_tokens: int
    ) -> "PromptTemplate":
        """The template of a model."""
        start = config.decoder_start_token if isinstance(config, T5Config) else None
        return cls(tokenizer, num_gist_tokens, start)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the output is a sequence of its own."""
        return self.decoder_start_token is not None

    def instruction_ids(self, instruction: str, max_length: int | None = None) -> list[int]:
        """Ids of what is compressed: the instruction, and the gist tokens it is compressed into.

        Args:
          max_length: cut the instruction so that there are at most so many ids; gist tokens always
            stay.

        Raises:
          ValueError: if the instruction is empty.
        """
        if not instruction.strip():
            raise UserError("the instruction is empty: there is nothing to compress")
        tokenizer = self.tokenizer
        ids = self._encode(f"Instruction: {instruction}".rstrip())
        gists = [tokenizer.gist_id] * self.num_gist_tokens
        if not self.is_encoder_decoder:
            if tokenizer.bos_id is not None:
                ids = [tokenizer.bos_id, *ids]
        elif tokenizer.space_id is not None:
            gists = [tokenizer.space_id, *gists]
        if max_length is not None:
            ids = ids[: max(max_length - len(gists), 0)]
        return ids + gists

    def input_ids(self, text: str) -> list[int]:
        """Ids of what follows the gist tokens, up to where the output begins."""
        if self.is_encoder_decoder:
            return [*self._input_text_ids(text), self.tokenizer.eos_id]
        return self.tokenizer.encode(f"Input: {text}\nOutput:" if text.strip() else "Output:")

    def _input_text_ids(self, text: str) -> list[int]:
        return self._encode(f"Input: {text}") if text.strip() else []

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(
            clean_up_tokenization_spaces(text) if self.is_encoder_decoder else text
        )

    def prompt_ids(self, instruction: str, text: str, max_length: int) -> list[int]:
        """Ids of a whole prompt, at most `max_length`.

        Where there are too many, the end of the input goes first, then that of the instruction. The
        gist tokens and what asks for the output stay.
        """
        head, rest = self.instruction_ids(instruction), self.input_ids(text)
        if len(head) + len(rest) <= max_length:
            return head + rest
        # What follows the input's own text: the line break and "Output:", or the end of sequence.
        split = len(self._input_text_ids(text))
        asking = rest[split:]
        head = self.instruction_ids(instruction, max_length - len(asking))
        room = max(max_length - len(head) - len(asking), 0)
        return head + rest[: min(room, split)] + asking

    def output_ids(self, text: str, max_length: int | None = None) -> list[int]:
        """Ids of the output, at most `max_length`, which end with the end of sequence."""
        cut = None if max_length is None else max_length - 1
        return [*self.tokenizer.encode(text)[:cut], self.tokenizer.eos_id]
