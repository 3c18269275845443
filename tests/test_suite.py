"""The suite of prompts unlike the training data: its items hold what they say, and losses are found."""

import re

import numpy as np
import pytest
from commands import command
from test_scores import write

from gist_jax import evaluate
from gist_jax.data import suite as data
from gist_jax.data.sources import load_data
from gist_jax.evaluation.predictions import FIELDS, read_predictions
from gist_jax.evaluation.scores import scored
from gist_jax.evaluation.suite import CHECKS, items_of, lost_literals, passes, table


def test_every_item_holds_what_it_says():
    items = data.items()
    assert 60 <= len(items) <= 100 and {item.domain for item in items} == set(data.DOMAINS)
    assert len({(item.instruction, item.input) for item in items}) == len(items)
    assert all(len([x for x in items if x.domain == domain]) >= 10 for domain in data.DOMAINS)
    for item in items:
        assert item.checks and passes(item, item.output), item
        assert not passes(item, ""), item
        assert not passes(item, item.input), item
        for kind, value in item.checks:
            assert kind in CHECKS
            if kind == "regex":
                re.compile(value)
        for text in item.literals:
            assert text in item.instruction and text in item.output, (text, item)
    # Long instructions are what compression is for.
    words = [len(item.instruction.split()) for item in items if item.domain == "long_instructions"]
    assert min(words) >= 90
    assert sum(len(item.literals) for item in items) >= 50


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("equals", "Two words", ["two words.", " Two words\n"], ["two  words", "words", ""]),
        ("equals", "a\nb", ["A \n\n b"], ["a b", "b\na"]),
        ("contains", "Tea", ["iced TEA"], ["te a"]),
        ("excludes", "tea", ["coffee"], ["Tea"]),
        ("regex", "^a.c$", ["abc\n"], ["abcd", "x\nabc"]),
        ("lines", 2, ["a\n\nb\n"], ["a", "a\nb\nc"]),
        ("lines", [1, 2], ["a", "a\nb"], ["", "a\nb\nc"]),
        ("words", [2, 3], ["a b", "a b c"], ["a", "a b c d"]),
        ("json", {"a": 1}, ['{"a": 1}', '```json\n{"a": 1}\n```'], ['{"a": "1"}', 'It is {"a": 1}', ""]),
        ("python", "f", ["def f(x):\n    return x", "```\ndef f(): pass\n```"], ["def g(): pass", "f("]),
    ],
)
def test_checks(kind, value, good, bad):
    for text in good:
        assert CHECKS[kind](text, value), text
    for text in bad:
        assert not CHECKS[kind](text, value), text


def predictions(change):
    """A record for every item, whose prediction is the reference as `change(item)` has it."""
    return [
        dict(zip(FIELDS, (x.instruction, x.input, x.output, change(x)), strict=True))
        for x in data.items()
    ]


def test_what_is_lost_to_a_control():
    """The domain that loses, how much of it, and the very texts; not what the control lacks itself."""

    def compressed(item):
        if item.domain == "formatting":
            return "something else"
        return item.output.replace("4471", "4470").replace("Pier 7", "Pier 9").replace("Odile", "Ina")

    def whole(item):
        return item.output.replace("Odile", "Ida")

    runs = scored([("gist", predictions(compressed)), ("pos", predictions(whole))])
    items = items_of(runs[0].records)
    rows = {row["domain"]: row for row in table(items, *runs)}
    assert list(rows) == [*(domain.replace("_", " ") for domain in data.DOMAINS), "all"]
    assert rows["formatting"]["passed"] == 0 and rows["formatting"]["passed_against"] == 100
    assert rows["formatting"]["passed_lost"] == rows["formatting"]["passed_lost_low"] == 100
    assert rows["code"]["passed_lost"] == rows["code"]["rougeL_lost"] == 0
    # Of 12 each: one names Pier 7, and one Odile, whom neither run has.
    assert rows["long instructions"]["passed_lost"] == pytest.approx(100 / 12)
    assert rows["writing"]["passed"] == rows["writing"]["passed_against"] == pytest.approx(1100 / 12)
    assert rows["names and numbers"]["passed"] == pytest.approx(1000 / 12)  # two sign with 4470
    mine = np.array([100.0 * passes(x, compressed(x)) for x in items])
    assert rows["all"]["passed"] == mine.mean() and rows["all"]["items"] == str(len(items))
    total = sum(len(x.literals) for x in items if x.domain == "names_and_numbers")
    assert rows["names and numbers"]["literals"] == f"{total - 2} of {total}"
    assert rows["names and numbers"]["literals_against"] == f"{total} of {total}"
    lost = [(one.literal, one.by_both) for one in lost_literals(items, *runs)]
    assert [text for text, by_both in lost if by_both] == ["Odile"] and lost[-1][0] == "Odile"
    assert ("4471", False) in lost and ("Pier 7", False) in lost
    assert items_of([*runs[0].records[:3], {**runs[0].records[3], "input": "other"}]) is None


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_the_suite_by_command(tmp_path, workdir, monkeypatch, capsys):
    """A source without a train split, that needs no network; a model may be new to every word of it."""
    assert set(load_data("suite").splits) == {"suite"}
    output = tmp_path / "suite.csv"
    lengths = "--max_new_tokens=4", "--max_input_length=48"
    arguments = f"--model={workdir}", "--source=suite", f"--output={output}", *lengths
    printed = command(evaluate, monkeypatch, capsys, *arguments)
    assert len(read_predictions(output)) == len(data.items())
    assert re.search("^formatting +12 +0.00 ", printed, re.M)
    assert "Dr. Amara Okonkwo-Reyes  (names_and_numbers: Sign every answer" in printed
    pos = write(tmp_path / "pos.csv", predictions(lambda item: item.output))
    printed = command(evaluate, monkeypatch, capsys, f"--predictions={output}", f"--against={pos}")
    assert re.search("^formatting +12 +0.00 +100.00 +100.00 +100.00 to 100.00 ", printed, re.M)
