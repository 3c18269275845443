"""What is said of a source: lengths, cut examples, duplicates and leaks."""

import csv
import json

from commands import command, mistake

from gist_jax.data import describe
from gist_jax.data.tokenization import train_bpe

TRAIN = [("Add tea.", "cup"), ("Add tea.", "cup"), ("add TEA!", "bowl"), ("Say it.", "long " * 60)]
UNSEEN = [("Add tea.", "cup"), ("add  tea", "Cup"), ("Other.", "bowl")]


def test_describe(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for name, pairs in (("train", TRAIN), ("validation_unseen", UNSEEN)):
        records = [{"instruction": i, "input": x, "output": "y"} for i, x in pairs]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    train_bpe(["Instruction: Input: Output: Add tea."] * 3, 300).save(tmp_path / "tokenizer")
    given = [f"--source={tmp_path}", f"--output={tmp_path}/out", "--max_length=64"]
    printed = command(describe, monkeypatch, capsys, *given, f"--tokenizer={tmp_path}/tokenizer")

    def rows(name):
        with (tmp_path / "out" / name).open() as file:
            return list(csv.DictReader(file))

    overlap = {(r["same"], r["split"]): (r["duplicates"], r["in train"]) for r in rows("overlap.csv")}
    assert overlap == {
        ("instruction", "train"): ("1", ""),
        ("instruction", "validation_unseen"): ("0", "1"),
        ("instruction and input", "train"): ("1", ""),
        ("instruction and input", "validation_unseen"): ("0", "1"),
        ("instruction, normalized", "train"): ("2", ""),
        ("instruction, normalized", "validation_unseen"): ("1", "2"),
        ("both, normalized", "train"): ("1", ""),
        ("both, normalized", "validation_unseen"): ("1", "2"),
    }
    lengths = {(r["split"], r["field"]): r for r in rows("lengths.csv")}
    assert (
        lengths["train", "input"]["cut"] == "1" and lengths["validation_unseen", "input"]["cut"] == "0"
    )
    assert int(lengths["train", "input"]["p100"]) > 60 > int(lengths["train", "instruction"]["p100"])
    assert (tmp_path / "out" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "instruction, normalized  validation_unseen" in printed
    assert "give --tokenizer" in mistake(describe, monkeypatch, capsys, *given)
