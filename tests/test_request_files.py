"""Files of requests: what was killed resumes, and the output is that of a run that was not."""

import csv
import io
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from commands import command, mistake
from processes import run, wait_for

import gist_jax
from gist_jax import compress, generate
from gist_jax.data.files import read_records
from gist_jax.errors import UserError
from gist_jax.inference import instruction_files, request_files
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.library import GistLibrary
from gist_jax.parts import Parts

WORKDIR = pathlib.Path(__file__).parent / "examples" / "llama" / "workdir"
NAMED = {"count": "Count the words.", "last": "Say the last word.", "none": ""}
# In blocks of four requests.
SCRIPT = """
import sys
import gist_jax
from gist_jax import compress, generate
from gist_jax.inference import instruction_files, request_files
from gist_jax.inference.language_model import LanguageModel
request_files.BLOCK = 4
generate.main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a library, and files of eleven requests, one of which cannot be answered."""
    folder = tmp_path_factory.mktemp("requests")
    library = GistLibrary(folder / "gists")
    library.add({name: text for name, text in NAMED.items() if text}, gist_jax.load(WORKDIR))
    records = [
        {
            "number": i,
            "input": f"red {'cow ' * (i % 4)}",
            "gist": list(NAMED)[i % 3],
            "max_new_tokens": 2 + i % 5,
            "temperature": i % 2 * 1.5,
            "output": "known",
        }
        for i in range(11)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with (folder / "in.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return folder


def arguments(folder, inputs, output):
    files = [f"--inputs={folder / inputs}", f"--output={folder / output}"]
    return [f"--model={WORKDIR}", f"--library={folder / 'gists'}", *files]


def test_a_killed_command_resumes(folder, monkeypatch, capsys):
    def start(output):
        return run([sys.executable, "-c", SCRIPT, *arguments(folder, "in.jsonl", output)])

    killed = start("killed.jsonl")
    first = folder / ".killed.jsonl.parts" / "000000000.jsonl"
    wait_for(killed, first.exists)
    killed.kill()
    killed.communicate()
    assert first.exists() and not (folder / "killed.jsonl").exists()
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(request_files, "BLOCK", 4)
    command(generate, monkeypatch, capsys, *arguments(folder, "in.jsonl", "whole.jsonl"))
    assert first.stat().st_mtime_ns == before
    resumed = start("killed.jsonl")
    assert (written := resumed.communicate()[1]) is not None and resumed.returncode == 0, written
    assert (folder / "killed.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert not first.parent.exists()


def test_outputs_stand_beside_what_was_asked(folder, monkeypatch, capsys):
    monkeypatch.setattr(request_files, "BLOCK", 4)
    for output in ("a.jsonl", "a.csv", "a.parquet", "a.json"):
        inputs = "in.csv" if output == "a.csv" else "in.jsonl"
        printed = command(generate, monkeypatch, capsys, *arguments(folder, inputs, output))
        assert printed.endswith("11 outputs, 3 of them errors\n")
    lines, table, parquet, listed = (
        read_records(folder / f"a.{kind}") for kind in ("jsonl", "csv", "parquet", "json")
    )
    assert lines == listed
    for i, (line, of_csv, of_parquet) in enumerate(zip(lines, table, parquet, strict=True)):
        assert line["number"] == i and line["reference"] == "known"
        assert of_csv["output"] == of_parquet["output"] == line["output"]
        assert ("error" in line) == (i % 3 == 2) == (line["reason"] == "error")


def test_instructions_of_a_file(folder, monkeypatch, capsys):
    """Compressed in parts; one that is there already is not made again."""
    texts = [f"Say the {word} word." for word in ("first", "second", "third", "last", "same")]
    lines = "".join(json.dumps({"instruction": text}) + "\n" for text in texts)
    (folder / "some.jsonl").write_text(lines)
    monkeypatch.setattr(instruction_files, "PART", 2)
    lm = gist_jax.load(WORKDIR)
    expected = lm.compress(texts)
    output = folder / "all.gist.safetensors"
    given = [f"--model={WORKDIR}", f"--output={output}"]
    compressed, left = LanguageModel.compress, [2]

    def broken(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return compressed(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "compress", broken)
        with pytest.raises(SystemExit):
            command(compress, monkeypatch, capsys, *given, f"--instructions={folder / 'some.jsonl'}")
        assert not output.exists()
        left[0] = 1
        command(compress, monkeypatch, capsys, *given, f"--instructions={folder / 'some.jsonl'}")
    found = gist_jax.GistCache.load(output)
    assert found.instructions == tuple(texts) and found.origin == expected.origin
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    output.unlink()
    command(compress, monkeypatch, capsys, *given, "--instructions=-")
    assert gist_jax.GistCache.load(output).instructions == tuple(texts)
    monkeypatch.setattr("sys.stdin", io.StringIO('{"other": 1}'))
    text = mistake(compress, monkeypatch, capsys, *given, "--instructions=-")
    assert "record 0 of - must have an instruction" in text


def test_mistakes_are_sentences(folder, monkeypatch, capsys):
    def fails(*changed: str, inputs="in.jsonl", output="b.jsonl") -> str:
        given = [*arguments(folder, inputs, output), *changed]
        return mistake(generate, monkeypatch, capsys, *given)

    assert "must end with one of" in fails(output="b.txt")
    assert "nope.jsonl" in fails(inputs="nope.jsonl")
    assert "--slots must be at least 1" in fails("--slots=0")
    Parts(folder / "b.jsonl").begin({"seed": 0})
    assert f"{folder / '.b.jsonl.parts'} holds parts" in fails("--seed=1")
    with pytest.raises(UserError, match="whose seed is 0, not 1"):
        Parts(folder / "b.jsonl").begin({"seed": 1})
    assert "goes with --inputs=-" in fails("--output=-")
    assert "one instruction" in fails("--instruction=a", "--instruction=b")
