"""Windows of documents, which training takes for examples.

Plain language modelling predicts all of a window. Of a source with `compress=0.5` the first half of
every window takes the place of an instruction and the rest that of its output: with gist tokens between
them that is gist pretraining, in which a model learns to compress any text at all.

    document   a b c d e f g h </s>   in windows of 4 tokens:
    plain      <s> a b c d            <s> e f g h           (</s> alone is left out)
    halves     <s> a b <GIST> c d     <s> e f <GIST> g h
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gist_jax.data.prompt_template import EncodedExample, PromptTemplate
from gist_jax.data.token_cache import TokenCache
from gist_jax.errors import UserError


class Windows(Sequence[EncodedExample]):
    """All tokens of documents, in windows that fit into rows and do not overlap.

    The last window of a document is shorter. A window that begins inside of a document has a beginning
    of sequence too.
    """

    def __init__(
        self,
        cache: TokenCache,
        template: PromptTemplate,
        compress: float,
        max_length: int,
        max_output_length: int,
    ):
        """Takes tokenized documents and the lengths of rows, see `training_batches`.

        Raises:
          UserError: if an encoder-decoder is to read documents of which nothing is compressed.
        """
        self._cache, self._compress = cache, compress
        self._bos = [] if template.tokenizer.bos_id is None else [template.tokenizer.bos_id]
        self._eos = []
        length = max_length
        if template.is_encoder_decoder:
            if not compress:
                raise UserError(
                    "documents are for decoders: an encoder-decoder needs ?compress=0.5 in "
                    "config.data.source, which says how much of a window its encoder reads"
                )
            self._bos, self._eos = [], [template.tokenizer.eos_id]
            longest = max_length - len(template.gist_ids) - 1
            length = int(min(longest / compress, max_output_length / (1 - compress)))
        elif compress:
            # A row has one token less than there are ids; the first of these is <s>.
            length = max_length - len(template.gist_ids)
        self._length = length
        lengths = cache.lengths()[:, 2]
        # A last window of one token, which is the end of sequence, is left out.
        counts = np.maximum((lengths + length - 2) // length, 1)
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        document = int(np.searchsorted(self._ends, index, side="right"))
        number = index - (int(self._ends[document - 1]) if document else 0)
        ids = self._cache.output_ids(document, number * self._length, self._length)
        if not self._compress:
            return EncodedExample([], self._bos, ids, own=0)
        head = min(max(round(len(ids) * self._compress), 1), len(ids) - 1)
        return EncodedExample([*self._bos, *ids[:head]], self._eos, ids[head:], own=0)

    def spread(self, count: int) -> list[EncodedExample]:
        """So many windows, or all there are, evenly spread over the documents."""
        count = min(count, len(self))
        return [self[i * len(self) // count] for i in range(count)]

    def __repr__(self) -> str:
        return f"Windows({len(self)} of {len(self._cache)} documents)"
