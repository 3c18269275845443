"""Sources of examples: every kind of file, mappings of fields, mixtures, hashes, and mistakes."""

import dataclasses
import json
from fractions import Fraction

import datasets
import numpy as np
import pytest

from gist_jax.data.batching import training_batches
from gist_jax.data.fields import checked, mapping
from gist_jax.data.mixture import Selection
from gist_jax.data.prompt_template import PromptTemplate
from gist_jax.data.record_files import write_array_record
from gist_jax.data.sources import first, load_data, load_splits
from gist_jax.data.tfds_builder import InstructionBuilder
from gist_jax.data.token_cache import token_cache
from gist_jax.data.tokenization import train_bpe
from gist_jax.errors import UserError

EXAMPLES = [
    {"instruction": f"Say {i}, please.", "input": "" if i % 3 else f"äé {i}\n", "output": f"{i}!"}
    for i in range(50)
]


class Few(InstructionBuilder):
    """A data set of TFDS."""


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """The same examples in every kind of source: names -> lines of config."""
    path = tmp_path_factory.mktemp("sources")
    table = datasets.Dataset.from_list(EXAMPLES)
    (path / "plain").mkdir()
    (path / "plain" / "train.json").write_text(json.dumps(EXAMPLES))
    (path / "lines").write_text("\n".join(map(json.dumps, EXAMPLES)))
    table.to_csv(path / "table", index=False)
    table.to_parquet(path / "arrow")
    datasets.DatasetDict({"train": table}).save_to_disk(path / "saved")
    for i, part in enumerate((EXAMPLES[:20], EXAMPLES[20:])):
        write_array_record(path / f"few-train.array_record-0000{i}-of-00002", part)
    Few(source=str(path / "plain"), data_dir=path / "tfds").download_and_prepare()
    return {
        "a path": f"{path}/plain",
        "json": f"json:{path}/lines",
        "csv": f"csv:{path}/table",
        "parquet": f"parquet:{path}/arrow?fields=alpaca",
        "hf": f"hf:{path}/saved?instruction=instruction&input=input&output=output",
        "arrayrecord": f"arrayrecord:{path}/*.array_record*",
        "tfds": f"tfds:few?data_dir={path}/tfds",
    }


def test_all_kinds_of_sources_give_the_same_batches(everywhere):
    template = PromptTemplate(train_bpe([e["output"] for e in EXAMPLES], 300), 1)
    found = {}
    for kind, source in everywhere.items():
        examples = load_splits(source)["train"]
        assert list(examples) == EXAMPLES, kind
        sizes = dict(batch_size=4, max_length=32, max_output_length=32, pack=False, seed=3)
        stream = training_batches(examples, template, **sizes)
        found[kind] = [next(stream) for _ in range(30)]
    for kind, batches in found.items():
        for batch, expected in zip(batches, found["a path"], strict=True):
            for name, x in batch.items():
                np.testing.assert_array_equal(x, expected[name], err_msg=kind)


def test_workers_read_what_one_process_reads(everywhere, tmp_path, monkeypatch):
    """All that is read record by record, and special tokens in texts, in one mixture."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    records = [
        {"instruction": "Say <GIST> </s>.", "input": "<s>", "output": f"<GIST> {i}"} for i in range(9)
    ]
    (tmp_path / "special.json").write_text(json.dumps(records))
    template = PromptTemplate(train_bpe([e["output"] for e in EXAMPLES], 300), 1)
    kinds = ("hf", "arrayrecord", "tfds")
    source = " + ".join([*(everywhere[kind] for kind in kinds), f"2*json:{tmp_path}/special.json"])
    mixture = load_splits(source)["train"]
    cache = token_cache(EXAMPLES, template, "x")
    mixture = dataclasses.replace(mixture, parts=(cache, *mixture.parts[1:]))
    sizes = dict(batch_size=4, max_length=64, max_output_length=32, seed=3, pack=True)
    ours, theirs = (training_batches(mixture, template, **sizes, workers=n) for n in (0, 2))
    for _ in range(12):
        batch, expected = next(theirs), next(ours)
        for name, x in batch.items():
            np.testing.assert_array_equal(x, expected[name])
        gists = (batch["tokens"] == template.tokenizer.gist_id).sum(axis=1)
        np.testing.assert_array_equal(gists, batch["segment"].max(axis=1))  # one of every example


def test_a_changed_file_has_another_fingerprint(everywhere, tmp_path):
    same = load_data(everywhere["a path"]).fingerprint
    copied = tmp_path / "train.json"
    copied.write_text(json.dumps(EXAMPLES))
    assert load_data(str(copied)).fingerprint == same
    assert load_data(f"json:{copied}?output=input").fingerprint != same
    copied.write_text(json.dumps(EXAMPLES).replace("7!", "8!"))
    assert load_data(str(copied)).fingerprint != same


CHAT = [{"role": "system", "content": "I"}, {"role": "user", "content": "x"}]
CHAT += [{"role": "assistant", "content": "y"}, {"role": "user", "content": "more"}]
SHARED = [
    {"from": "system", "value": "I"},
    {"from": "human", "value": "x"},
    {"from": "gpt", "value": "y"},
]


@pytest.mark.parametrize(
    ("record", "chosen"),
    [
        ({"instruction": "I", "input": "x", "output": "y"}, {}),
        ({"instruction": b"I", "input": b"x", "output": b"y"}, {}),
        ({"instruction": "I", "context": "x", "response": "y", "category": "z"}, {}),
        ({"instruction": "I", "input": "x", "answer": "y"}, {"output": "answer"}),
        ({"conversations": [{"from": "gpt", "value": "Hello!"}, *SHARED]}, {}),
        ({"definition": "I", "inputs": "x", "targets": "y"}, {}),
        ({"q": "I", "context": "x", "a": "y"}, {"instruction": "q", "input": "context", "output": "a"}),
        ({"messages": CHAT}, {}),
        ({"conversations": SHARED}, {}),
        ({"conversations": SHARED}, {"fields": "sharegpt"}),
        ({"inputs": "I", "targets": "y"}, {}),
        ({"inputs_pretokenized": "I", "targets_pretokenized": "y", "inputs": [1]}, {"fields": "p3"}),
        ({"messages": CHAT[1:]}, {}),
    ],
)
def test_fields_are_mapped(record, chosen):
    example = checked(mapping(chosen, record)(record), 0, "here")
    expected = {"instruction": "I", "input": "x", "output": "y"}
    if "inputs" in record and "definition" not in record:  # a whole prompt is the instruction
        expected["input"] = ""
    if record.get("messages") == CHAT[1:]:  # so is what a user says where there is no system message
        expected = {"instruction": "x", "input": "", "output": "y"}
    assert example == expected


@pytest.mark.parametrize("weights", ["7 3", "5 3", "4 3", "1 2 4", "0.7 0.3", "1 1 1 1", "90 9 1"])
def test_the_shares_of_a_mixture_are_exact(weights):
    weights = [Fraction(weight) for weight in weights.split()]
    shares = [weight / sum(weights) for weight in weights]
    selection, drawn = Selection(shares), [[] for _ in shares]
    for n in range(1, 1001):
        part, number = selection[n - 1]
        drawn[part].append(number)
        for share, numbers in zip(shares, drawn, strict=True):
            assert abs(len(numbers) - share * n) < 1
    for numbers in drawn:
        assert numbers == list(range(len(numbers)))


def test_a_mixture_draws_its_parts_in_proportion(tmp_path):
    for name, count in (("a", 7), ("b", 30)):
        records = [{"instruction": name, "output": f"{i}"} for i in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    mixture = load_splits(f"3*json:{tmp_path}/a.json + 1*{tmp_path}/b.json")["train"]
    assert [e["instruction"] for e in first(mixture, 8)] == ["a"] * 6 + ["b"] * 2
    assert len(mixture) == 37 and mixture[7]["instruction"] == "b" and len(list(mixture)) == 37
    tokenizer = train_bpe(["a b 0 1 2 3 4 5 6 7 8 9"], 262)
    sizes = dict(batch_size=1, max_length=32, max_output_length=32, pack=False, seed=0)
    stream = training_batches(mixture, PromptTemplate(tokenizer, 1), **sizes)
    drawn = [tuple(next(stream)["tokens"][0]) for _ in range(120)]
    names = [tokenizer.decode(row).split()[1] for row in drawn]
    for n in range(4, 121, 4):  # exact after every four, and an epoch of b has all of b once
        assert names[:n].count("a") == 3 * n // 4
    of_b = [row for row, name in zip(drawn, names, strict=True) if name == "b"]
    assert len(of_b) == len(set(of_b)) == 30
    assert len({row for row, name in zip(drawn[:9], names, strict=False) if name == "a"}) == 7


@pytest.mark.parametrize(
    ("name", "content", "source", "sentence"),
    [
        ("x.json", b'[{"instruction": "a", "outp', "{}", "cannot read examples from .*x.json"),
        ("x.json", b'[{"instruction": "a"}]', "{}", "record 0 of .*x.json must have an output"),
        ("x.json", b'[{"instruction": "a", "output": 1}]', "{}", "record 0 .* output that is a text"),
        ("x.json", b'[{"instruction": "\xff", "output": ""}]', "{}", "cannot read .*utf-8"),
        ("x.json", b'[{"instruction": "\\ud800", "output": ""}]', "{}", "record 0 .* not valid Unicode"),
        ("x.json", b"[]", "{}", "must hold a list of records, and at least one"),
        ("x.json", b"[1]", "{}", "record 0 of .* must be an object"),
        ("x.json", b"[" * 10**5, "{}", "cannot read examples"),
        ("x.csv", b"instruction,output\n", "{}", "at least one"),
        (
            "x.json",
            b'[{"q": "a", "output": ""}]',
            "json:{}?instruction=p",
            "has no field p, but q",
        ),
        ("x.json", b'[{"q": "a"}]', "json:{}?prompt=q", "ends with prompt=…, which is not known"),
        ("x.json", b'[{"q": "a"}]', "json:{}?fields=dolli", "fields=dolli is not known: choose from"),
        ("x.json", b'[{"q": "a"}]', "json:{}?fields=p3&input=q", "either fields=p3 or the names"),
        ("x.json", b"[]", "0.1234567*instructions + 1*instructions", "are too fine"),
        ("x.json", b"[]", "0*json:{} + instructions", "a part of the mixture .* write WEIGHT"),
        ("x.json", b"[]", "ftp:{}", "is neither 'instructions', nor a file"),
        ("x.json", b"[]", "hf:{}", "cannot load hf:"),
        ("x.json", b"[]", "tfds:nothing_like_it?data_dir={}", "cannot read tfds:nothing_like_it"),
        ("x.array_record", b"no array record at all", "arrayrecord:{}", "cannot read .*x.array_record"),
        ("x.json", b"[]", "arrayrecord:{}.none", "there are no files"),
    ],
)
def test_mistakes(name, content, source, sentence, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        list(load_splits(source.format(tmp_path / name))["train"])


def test_a_damaged_record_is_named(tmp_path):
    file = tmp_path / "train.array_record"
    write_array_record(file, EXAMPLES)
    content = bytearray(file.read_bytes())
    content[1000:3000] = bytes(2000)
    file.write_bytes(content)
    with pytest.raises(UserError, match="cannot read"):
        list(load_splits(f"arrayrecord:{file}")["train"])
    with pytest.raises(UserError, match="record 0 of .* is no JSON object"):
        write_array_record(file, [[1]])
        list(load_splits(f"arrayrecord:{file}")["train"])
