"""What comes from outside: the hub, tokenizer files, and libraries of other versions."""

import os
import subprocess
import sys
import time

import pytest
import sentencepiece

from gist_jax.data.tokenization import load_tokenizer
from gist_jax.errors import UserError, shortened
from gist_jax.training import topology


def test_a_mistyped_path_without_a_network(tmp_path):
    """It is asked for once, and nothing else is said."""
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", "from gist_jax.interop.huggingface import find; find('nope')"]
    start = time.monotonic()
    done = subprocess.run(command, env=os.environ | unreachable, capture_output=True, text=True)
    lines = done.stderr.strip().splitlines()
    assert "there is no directory nope, and the Hugging Face hub gave no such model" in lines[-1]
    assert not [line for line in lines if "etry" in line or "arning" in line]
    assert time.monotonic() - start < 15  # it was 24 s for the hub alone


def test_damaged_sentencepiece_files(tmp_path):
    """Two pieces are the same, and no UTF-8, which then stands in the library's message."""
    text = tmp_path / "text"
    text.write_text("\n".join(f"the quick brown fox jumps over the lazy dog {i}" for i in range(99)))
    options = dict(input=str(text), model_prefix=str(tmp_path / "x"), vocab_size=60, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(**options, hard_vocab_limit=False)
    file = tmp_path / "x.model"
    load_tokenizer(file)
    pieces = file.read_bytes()
    damaged = pieces.replace(b"\n\x01a", b"\n\x01\xff", 1).replace(b"\n\x01b", b"\n\x01\xff", 1)
    assert damaged != pieces
    for data in (damaged, pieces[:-9], b""):
        file.write_bytes(data)
        with pytest.raises(UserError, match="tokenizer .*x.model"):
            load_tokenizer(file)


def test_a_libtpu_of_another_version(monkeypatch):
    """Both versions are named; of the right one a fault is a fault."""

    class Chip:
        platform = "tpu"

    class Compiled:
        def as_text(self):
            raise ValueError("cannot parse\nthe proto")

    monkeypatch.setattr(topology, "_libtpu_versions", lambda: ("0.0.52", "0.0.42"))
    with pytest.raises(
        UserError, match="libtpu 0.0.52 writes programs .* it needs libtpu 0.0.42 .*: cannot"
    ):
        topology.text_of([Chip()], Compiled())
    monkeypatch.setattr(topology, "_libtpu_versions", lambda: ("0.0.42.1", "0.0.42"))
    with pytest.raises(ValueError, match="cannot parse\nthe proto"):
        topology.text_of([Chip()], Compiled())


def test_messages_of_other_libraries_are_shortened():
    assert shortened("one\n  two") == "one two"
    assert len(shortened("x" * 5000)) == 200 and shortened("x" * 5000).endswith("x…")
