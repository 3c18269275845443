"""Alpaca+: the published rules on small files, and the published splits from the original files."""

import json
import pathlib

import pytest
from commands import command, mistake

from gist_jax.data import alpaca_plus
from gist_jax.data.record_files import open_tfds
from gist_jax.data.sources import load_splits
from gist_jax.data.tfds_builder import AlpacaPlus

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"


def example(instruction, text="", output="o"):
    return {"instruction": instruction, "input": text, "output": output, "source": "x"}


def test_the_rules(monkeypatch):
    monkeypatch.setattr(alpaca_plus, "SIZE", 2)
    ours = [
        example("twice", "1"),
        example("twice", "2"),
        example("twice", "2", "again"),  # the same instruction and input
        example("once", "1"),
        example("no input first"),
        example("no input first", "1"),
        example("two", "1"),
        example("two", "2"),
        example("three, one too many", "1"),
        example("three, one too many", "2"),
    ]
    alpaca = [
        example("once", "5"),  # a training instruction
        example("first", "1"),
        example("first", "2"),
        example("no input"),
        example("no input", "1"),
        example("too late", "1"),
    ]
    found = alpaca_plus.split(alpaca, [example("written", "by hand")], ours)
    pairs = {name: [(e["instruction"], e["input"]) for e in split] for name, split in found.items()}
    assert pairs["validation_seen"] == [("twice", "1"), ("two", "1")]
    assert pairs["validation_unseen"] == [("first", "1"), ("first", "2")]
    assert pairs["validation_human"] == [("written", "by hand")]
    of_ours = [("twice", "2"), ("once", "1"), ("no input first", ""), ("no input first", "1")]
    of_ours += [("two", "2"), ("three, one too many", "1"), ("three, one too many", "2")]
    of_alpaca = [("once", "5"), ("no input", ""), ("no input", "1"), ("too late", "1")]
    assert pairs["train"] == of_ours + of_alpaca
    assert list(alpaca_plus.split(alpaca, [], [])) == ["train", "validation_unseen", "validation_human"]


def test_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "alpaca.json").write_text(json.dumps([example("a", "x", ""), example("b")]))
    task = {
        "instruction": "h",
        "instances": [{"input": "1", "output": "2"}, {"input": "", "output": ""}],
    }
    (tmp_path / "human.jsonl").write_text(json.dumps(task) + "\n")
    given = [f"--alpaca={tmp_path}/alpaca.json", f"--human={tmp_path}/human.jsonl"]
    printed = command(
        alpaca_plus, monkeypatch, capsys, *given, f"--output={tmp_path}/out", f"--tfds={tmp_path}/tfds"
    )
    assert "Self-Instruct is missing" in printed and "train                    1 examples" in printed
    splits = load_splits(str(tmp_path / "out"))
    assert [e["output"] for e in splits["validation_human"]] == ["2", "empty"]
    assert splits["validation_unseen"][0]["output"] == "empty"
    stored = load_splits(f"tfds:alpaca_plus?data_dir={tmp_path}/tfds")
    assert {name: list(split) for name, split in stored.items()} == splits
    assert AlpacaPlus(data_dir=tmp_path / "tfds").info.splits["train"].num_examples == 1
    assert len(open_tfds("alpaca_plus", str(tmp_path / "tfds")).digests) == 3
    said = mistake(alpaca_plus, monkeypatch, capsys, *given, f"--output={tmp_path}/out")
    assert "exists already" in said
    (tmp_path / "alpaca.json").write_text('[{"instruction": "a"}]')
    said = mistake(alpaca_plus, monkeypatch, capsys, *given, f"--output={tmp_path}/other")
    assert "record 0" in said and not (tmp_path / "other").exists()


@pytest.mark.skipif(not SHARED.exists(), reason="needs the original files, in ../shared/data")
def test_the_published_splits():
    alpaca = alpaca_plus.read_examples(SHARED / "alpaca" / "alpaca_data.json", "alpaca")
    human = alpaca_plus.read_examples(SHARED / "alpaca" / "user_oriented_instructions.jsonl", "human")
    found = alpaca_plus.split(alpaca, human)
    assert len(found["train"]) == 51_002
    for name in ("validation_unseen", "validation_human"):
        published = json.loads((SHARED / "alpaca_plus" / f"{name}.json").read_text())
        fields = ("instruction", "input", "output")
        assert [[e[f] for f in fields] for e in found[name]] == [
            [e[f] for f in fields] for e in published
        ]
