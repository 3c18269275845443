"""Tokenizers and JSON sources."""

import json
import pathlib

import pytest

from gist_jax.data import sources, tokenization

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def test_prompt_form():
    tokenizer = tokenization.train_bpe(["Instruction: Say it. Input: tea Output: yes"] * 3, 300)
    head = tokenization.instruction_ids(tokenizer, "Say it.\n", 2)
    assert head[0] == tokenizer.bos_id and head[-2:] == [tokenizer.gist_id] * 2
    assert tokenizer.decode(head) == "Instruction: Say it."
    assert tokenizer.decode(tokenization.input_ids(tokenizer, "tea")) == "Input: tea\nOutput:"
    assert tokenizer.decode(tokenization.input_ids(tokenizer, " ")) == "Output:"
    output = tokenization.output_ids(tokenizer, "naïve 中文!")
    assert output[-1] == tokenizer.eos_id
    assert tokenizer.decode([*output, 5, 6]) == "naïve 中文!"


def test_cutting_keeps_gist_tokens():
    tokenizer = tokenization.train_bpe(["one two three"], 300)
    ids = tokenization.instruction_ids(tokenizer, "one two three", 3, max_length=5)
    assert len(ids) == 5 and ids[-3:] == [tokenizer.gist_id] * 3


def test_json_sources(tmp_path):
    records = [
        {"instruction": "Say it.", "output": "it"},
        {"instruction": "a", "input": "b", "output": "c"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(records))
    (tmp_path / "validation_seen.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    splits = sources.load_splits(str(tmp_path))
    assert list(splits) == ["train", "validation_seen"]
    assert splits["train"][0]["input"] == ""
    assert splits["validation_seen"] == splits["train"]
    assert sources.load_splits(str(tmp_path / "train.json"))["train"] == splits["train"]


def test_texts_that_other_readers_change(tmp_path):
    records = [{"instruction": "a\u2028b", "input": None, "output": "None"}]
    (tmp_path / "train.jsonl").write_text(json.dumps(records[0], ensure_ascii=False) + "\n")
    (tmp_path / "validation_a.csv").write_text("instruction,input,output\nNA,,null\n1,2,3\n")
    splits = sources.load_splits(str(tmp_path))
    assert splits["train"] == [{"instruction": "a\u2028b", "input": "", "output": "None"}]
    assert [r["output"] for r in splits["validation_a"]] == ["null", "3"]
    (tmp_path / "train.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match="has both train.json"):
        sources.load_splits(str(tmp_path))


@pytest.mark.parametrize("limit", [24, 32, 60])
def test_prompts_are_cut_to_the_limit(limit):
    tokenizer = tokenization.train_bpe(["Instruction: Input: Output: one two"] * 3, 300)
    ids = tokenization.prompt_ids(tokenizer, "one " * 30, "two " * 30, 2, limit)
    assert len(ids) == limit and ids.count(tokenizer.gist_id) == 2
    assert tokenizer.decode(ids).endswith("\nOutput:")


def test_tables(tmp_path):
    import datasets

    table = datasets.Dataset.from_list([{"instruction": "Say it.", "input": "", "output": "it"}] * 2)
    table.to_csv(tmp_path / "train.csv", index=False)
    table.to_parquet(tmp_path / "validation_seen.parquet")
    splits = sources.load_splits(str(tmp_path))
    assert splits["train"] == splits["validation_seen"] == table.to_list()
    (tmp_path / "train.csv").write_text('a,b\n"1')
    with pytest.raises(ValueError, match="train.csv"):
        sources.load_splits(str(tmp_path))


def test_tokenizer_directory_without_tokenizer_json(tmp_path):
    """The layout of GPT-2: a vocabulary and a list of merges."""
    made = tokenization.train_bpe(["one two three"] * 3, 270).backend.tokenizer
    made.model.save(str(tmp_path))
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = tokenization.load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("one two")) == "one two"
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        tokenization.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "cannot read examples"),
        ("[]", "must hold a list of records, and at least one"),
        ('{"a": 1}', "must hold a list of records"),
        (
            '[{"instruction": "x", "output": "y"}, {"instruction": " ", "output": "y"}]',
            "record 1 of .* must have an instruction",
        ),
        ('[{"instruction": "x"}]', "record 0 of .* must have an output"),
    ],
)
def test_bad_json_sources(text, sentence, tmp_path):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        sources.load_splits(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_bad_tokenizer_files(name, tmp_path):
    (tmp_path / name).write_text("not a tokenizer")
    with pytest.raises(ValueError, match="cannot read the tokenizer"):
        tokenization.load_tokenizer(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published texts and tokenizers cannot be shipped")
def test_published_token_ids():
    tokenizer = tokenization.load_tokenizer(SHARED / "tokenizers" / "llama" / "tokenizer.model")
    golden = json.loads((SHARED / "golden" / "tokens.json").read_text())
    assert tokenizer.gist_id == golden["llama_gist_id"]
    for name, cases in golden["splits"].items():
        split, k = name.split("/k=")
        examples = sources.read_examples(SHARED / "data" / "alpaca_plus" / f"{split}.json")
        for case in cases:
            example = examples[case["index"]]
            prompt = tokenization.instruction_ids(tokenizer, example["instruction"], int(k))
            prompt += tokenization.input_ids(tokenizer, example["input"])
            assert prompt == case["llama_prompt"]
            assert tokenization.output_ids(tokenizer, example["output"]) == case["llama_completion"]
