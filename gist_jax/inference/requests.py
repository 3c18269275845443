"""Requests, each with a gist, an input and options of its own, and their results: text in, text out."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gist_jax.errors import UserError
from gist_jax.inference.checks import as_texts, check_cache
from gist_jax.inference.continuous import Row, write_rows
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.sampling import make_sampling

if TYPE_CHECKING:
    from gist_jax.inference.language_model import LanguageModel

STREAM_EVERY = 4  # tokens of which a stream writes the text at a time
_UNFINISHED = "\ufffd"  # stands for bytes that are no character yet


@dataclasses.dataclass(frozen=True)
class Request:
    """What an output is written from, and how; every option is that of `LanguageModel.generate`.

    `generate_many` writes what `generate` does for the same options and inputs in the same order: a
    sampled output depends on the seed and on how many requests came before, not on what is written
    beside it.
    """

    input: str = ""
    gist: GistCache | str | None = None  # a compressed instruction, or its name in the library
    instruction: str | None = None  # in place of `gist`: the whole prompt is read
    max_new_tokens: int = 64
    stop: str | Sequence[str] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    id: Any = None  # given back with the result; None: how many requests came before


class Result(NamedTuple):
    """What came of a request."""

    id: Any
    text: str
    reason: str  # why it ended: "eos" (the model's own end), "stop", "length" or "error"
    error: str = ""  # a sentence, if the request cannot be answered
    num_tokens: int = 0  # that were written, the end of sequence included


def answer(
    lm: "LanguageModel",
    requests: Iterable[Request | UserError],
    slots: int,
    library: Mapping[str, GistCache],
    first: int = 0,
) -> Iterator[Result]:
    """Does what `LanguageModel.generate_many` says.

    Args:
      requests: or mistakes in place of some, for which there are results too.
      first: the number of the first request.
    """
    if slots < 1:
        raise UserError(f"slots must be at least 1, but is {slots}")
    return _results(lm, enumerate(requests, first), slots, library)


def _results(
    lm: "LanguageModel",
    requests: Iterable[tuple[int, Request | UserError]],
    slots: int,
    library: Mapping[str, GistCache],
) -> Iterator[Result]:
    asked: dict[int, Request] = {}  # by their numbers: those in the slots
    mistakes: dict[int, UserError] = {}

    def rows() -> Iterator[Row]:
        for number, request in requests:
            try:
                if isinstance(request, UserError):
                    raise request
                asked[number] = request
                yield row_of(lm, request, number, library)
            except UserError as mistake:
                mistakes[number] = mistake
                yield Row((), None, 0, number=number, reason="error")

    for row in write_rows(lm.programs, rows(), slots):
        if not row.reason:
            continue
        request = asked.pop(row.number, Request())
        name = row.number if request.id is None else request.id
        if (mistake := mistakes.pop(row.number, None)) is not None:
            yield Result(name, "", row.reason, str(mistake))
        else:
            yield Result(
                name, _text(lm, row, as_stops(request.stop)), row.reason, num_tokens=len(row.output)
            )


def write_until(lm: "LanguageModel", rows: Sequence[Row], stops: Sequence[str]) -> list[str]:
    """The texts of rows, all written at a time, each up to the first of the stops in it."""
    for row in rows:
        row.is_over = _over(lm, stops)
    for _ in write_rows(lm.programs, rows, len(rows)):
        pass
    return [_text(lm, row, stops) for row in rows]


def stream(lm: "LanguageModel", request: Request) -> Iterator[str]:
    """Does what `LanguageModel.stream` says."""
    return _pieces(lm, row_of(lm, request, 0, {}), as_stops(request.stop))


def _pieces(lm: "LanguageModel", row: Row, stops: Sequence[str]) -> Iterator[str]:
    shown = 0
    for _ in write_rows(lm.programs, [row], 1, STREAM_EVERY):
        text = _text(lm, row, stops)
        if not row.reason:
            text = text.rstrip(_UNFINISHED)
            text = text[: len(text) - _begun(text, stops)]
        if len(text) > shown:
            yield text[shown:]
            shown = len(text)


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop."""
    lengths = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)


def row_of(lm: "LanguageModel", request: Request, number: int, library: Mapping[str, GistCache]) -> Row:
    """The row that a request asks for.

    Raises:
      UserError: if the request does not fit the model, or names a gist that there is not.
    """
    if (request.gist is None) == (request.instruction is None):
        raise UserError("give either a gist or an instruction")
    ids = lm.template.input_ids(*as_texts("input", [request.input]))
    gist = request.gist
    if isinstance(gist, str):
        if gist not in library:
            raise UserError(f"there is no gist {gist!r} in the library")
        gist = library[gist]
    if gist is not None:
        check_cache(gist, lm.origin, lm.config, 1)
    elif request.instruction is not None:
        ids = lm.instruction_ids(*as_texts("instruction", [request.instruction])) + ids
    lm.check_lengths([ids], gist, request.max_new_tokens)
    sampling = make_sampling(request.temperature, request.top_k, request.top_p)
    row = Row(ids, gist, request.max_new_tokens, sampling, request.seed, number)
    if stops := as_stops(request.stop):
        row.is_over = _over(lm, stops)
    return row


def _over(lm: "LanguageModel", stops: Sequence[str]) -> Callable[[list[int]], bool]:
    """Tells whether there is a stop in an output."""
    return lambda output: _first_stop(lm.tokenizer.decode(output), stops) is not None


def as_stops(stop: str | Sequence[str]) -> list[str]:
    """The texts before which an output ends.

    Raises:
      UserError: if one is empty, or no text.
    """
    stops = [stop] if isinstance(stop, str) else list(stop)
    if not all(isinstance(x, str) and x for x in stops):
        raise UserError(f"stop must be texts that are not empty, but is {stop!r}")
    return stops


def _text(lm: "LanguageModel", row: Row, stops: Sequence[str]) -> str:
    """The text of what has been written, up to the first stop in it."""
    text = lm.tokenizer.decode(row.output)
    return text[: _first_stop(text, stops)]


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of the stops begins; None if there is none."""
    found = [start for stop in stops if (start := text.find(stop)) >= 0]
    return min(found, default=None)
