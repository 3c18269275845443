"""Requests: every option has the effect that it has in `generate`, and each fails alone."""

import dataclasses
import io
import itertools
import json

import pytest

from gist_jax.errors import UserError
from gist_jax.inference import requests as requests_module
from gist_jax.inference.library import GistLibrary
from gist_jax.inference.request_files import answer_stream, request_of
from gist_jax.inference.requests import Request

llama_alone = pytest.mark.parametrize("model_family", ["llama"], indirect=True)
INSTRUCTIONS = ["Count the words.", "Say the last word.", "Reverse the words of the input."]
INPUTS = ["red cow dog", "", "tea", "red tiger hammer lamp"]
NEW = 12


@pytest.fixture(scope="module")
def library(lm, tmp_path_factory):
    library = GistLibrary(tmp_path_factory.mktemp("library"))
    library.add(dict(zip(["count", "last", "reverse"], INSTRUCTIONS, strict=True)), lm)
    return library


def texts(lm, requests, **options):
    """The texts of results, in the order of the requests."""
    results = sorted(lm.generate_many(requests, **options), key=lambda result: result.id)
    assert not any(result.error for result in results)
    return [result.text for result in results]


OPTIONS = [
    {},
    {"max_new_tokens": 3},
    {"stop": "e"},
    {"stop": ["tea", "o", "a"]},
    {"temperature": 1.5, "seed": 7},
    {"temperature": 1.5, "top_k": 3},
    {"temperature": 1.5, "top_p": 0.5, "seed": 2**32 + 1},
]


@pytest.mark.parametrize(
    ("model_family", "options"),
    [*(("llama", options) for options in OPTIONS), *(("t5", OPTIONS[i]) for i in (3, 6))],
    indirect=["model_family"],
    ids=str,
)
def test_options_are_those_of_generate(lm, library, options):
    options = {"max_new_tokens": NEW, **options}
    expected = lm.generate(library["count"], inputs=INPUTS, **options)
    stops = requests_module.as_stops(options.pop("stop", ()))
    plain = lm.generate(library["count"], inputs=INPUTS, **options)
    for text, whole in zip(expected, plain, strict=True):
        assert whole.startswith(text) and not any(stop in text for stop in stops)
    options["stop"] = stops
    asked = [Request(text, "count", **options) for text in INPUTS]
    assert texts(lm, asked, slots=2, library=library) == expected
    streamed = ["".join(lm.stream(library["count"], INPUTS[0], **options))]
    assert streamed == expected[:1]
    whole = [Request(text, instruction=INSTRUCTIONS[0], **options) for text in INPUTS]
    assert (
        texts(lm, whole)
        == expected
        == lm.generate(instructions=INSTRUCTIONS[:1], inputs=INPUTS, **options)
    )


@llama_alone
def test_what_does_not_fit_fails_alone(lm, library):
    other = dataclasses.replace(library["last"], origin=None)
    wrong = [
        Request("x", "nope"),
        Request("x", other),
        Request("x", "count", temperature=-1),
        Request("x", "count", stop=""),
        Request("x"),
        Request("x", "count", "Both."),
        Request("\ud800", "count"),
    ]
    if not lm.config.is_encoder_decoder:  # whose positions have an end
        wrong += [Request("x", "count", max_new_tokens=10**6), Request("x " * 500, "count")]
    good = [Request(text, "count", max_new_tokens=4, id=text) for text in INPUTS]
    mixed = [x for pair in itertools.zip_longest(wrong, good) for x in pair if x is not None]
    results = list(lm.generate_many(mixed, slots=2, library=library))
    assert len(results) == len(mixed)
    answered = {result.id: result for result in results}
    expected = lm.generate(library["count"], inputs=INPUTS, max_new_tokens=4)
    for text, output in zip(INPUTS, expected, strict=True):
        assert answered[text].text == output and answered[text].reason in ("eos", "length")
    failed = [result for result in results if result.reason == "error"]
    assert len(failed) == len(wrong) and all(result.error for result in failed)
    assert all(mixed[result.id] in wrong for result in failed)
    with pytest.raises(UserError, match="slots"):
        lm.generate_many(good, slots=0)
    with pytest.raises(UserError, match="not empty"):
        lm.generate(library["count"], inputs=["x"], stop="")


@llama_alone
def test_requests_are_taken_as_slots_become_free(lm, library):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield Request(INPUTS[number % 4], "count", max_new_tokens=1 + number % 5)

    results = lm.generate_many(endless(), slots=4, library=library)
    first = [next(results).id for _ in range(40)]
    assert len(taken) <= 40 + 2 * 4 and len(set(first)) == 40


@llama_alone
def test_streams_of_whole_characters(lm, monkeypatch):
    """Of a tokenizer whose tokens are bytes."""
    spoken = "aé€𝄞 é"

    class Bytes:
        def decode(self, ids):
            return spoken.encode()[: len(ids)].decode(errors="replace")

    class Model:
        tokenizer, programs = Bytes(), None

    row = requests_module.Row([], None, 20)

    def each():
        for _ in spoken.encode():
            row.output.append(0)
            yield row
        row.reason = "eos"
        yield row

    monkeypatch.setattr(requests_module, "write_rows", lambda *_: each())
    pieces = list(requests_module._pieces(Model(), row, []))
    assert "".join(pieces) == spoken and not any("\ufffd" in piece for piece in pieces)
    row.output.clear()
    row.reason = ""
    stops = ["€𝄞"]
    pieces = list(requests_module._pieces(Model(), row, stops))
    assert "".join(pieces) == "aé"


def test_records_as_requests():
    default = Request(instruction="Default.", max_new_tokens=5, stop=["x"])
    assert request_of({"input": "a", "other": 1}, default) == dataclasses.replace(default, input="a")
    given = request_of({"input": "", "gist": "g", "instruction": "", "top_k": "3", "seed": ""}, default)
    assert given == dataclasses.replace(default, gist="g", instruction=None, top_k=3)
    for name, value in [("input", 3), ("max_new_tokens", "many"), ("gist", ["a"]), ("top_p", {})]:
        with pytest.raises(UserError, match=name):
            request_of({name: value}, default)


@llama_alone
def test_standard_input_is_answered_line_by_line(lm, library, monkeypatch):
    lines = [json.dumps({"input": text, "gist": "count"}) for text in INPUTS]
    lines[2:2] = ["{not JSON", "[]", json.dumps({"gist": "nope", "input": ""})]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    output = io.StringIO()
    answer_stream(lm, Request(max_new_tokens=4), slots=2, library=library, output=output)
    records = [json.loads(line) for line in output.getvalue().splitlines()]
    expected = lm.generate(library["count"], inputs=INPUTS, max_new_tokens=4)
    assert [r["output"] for r in records if "error" not in r] == expected
    assert ["error" in record for record in records] == [False, False, True, True, True, False, False]
