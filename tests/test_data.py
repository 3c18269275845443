"""Tokenizers and JSON sources."""

import io
import json
import pathlib
import re

import pytest
import sentencepiece
import tokenizers
import transformers

from gist_jax.data import sources, tokenization
from gist_jax.data.prompt_template import PromptTemplate, clean_up_tokenization_spaces


def test_prompt_form():
    tokenizer = tokenization.train_bpe(["Instruction: Say it. Input: tea Output: yes"] * 3, 300)
    template = PromptTemplate(tokenizer, 2)
    head = template.instruction_ids("Say it.\n")
    assert head[0] == tokenizer.bos_id and head[-2:] == [tokenizer.gist_id] * 2
    assert tokenizer.decode(head) == "Instruction: Say it."
    assert tokenizer.decode(template.input_ids("tea")) == "Input: tea\nOutput:"
    assert tokenizer.decode(template.input_ids(" ")) == "Output:"
    output = template.output_ids("naïve 中文!")
    assert output[-1] == tokenizer.eos_id
    assert tokenizer.decode([*output, 5, 6]) == "naïve 中文!"


def test_prompt_form_of_an_encoder_decoder():
    tokenizer = tokenization.train_bpe(["Instruction: Say it. Input: tea Output: yes"] * 3, 300)
    template = PromptTemplate(tokenizer, 2, decoder_start_token=0)
    head = template.instruction_ids("Say it.\n")
    assert head == [*tokenizer.encode("Instruction: Say it."), *[tokenizer.gist_id] * 2]
    assert template.input_ids("tea") == [*tokenizer.encode("Input: tea"), tokenizer.eos_id]
    assert template.input_ids(" ") == [tokenizer.eos_id]
    assert template.output_ids("yes") == [*tokenizer.encode("yes"), tokenizer.eos_id]
    cut = template.output_ids("yes " * 20, max_length=5)
    assert len(cut) == 5 and cut[-1] == tokenizer.eos_id


def test_a_lone_space_stands_before_the_gist_tokens_of_an_encoder():
    words = {"<pad>": 0, "</s>": 1, "▁": 2, "Instruction": 3, ":": 4, "say": 5}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = tokenization.from_tokenizers(made, tokenization.SPECIAL_TOKENS)
    assert PromptTemplate(tokenizer, 2, 0).instruction_ids("say") == [3, 4, 5, 2, 6, 6]
    assert PromptTemplate(tokenizer, 2, 0).instruction_ids("say say", max_length=5) == [3, 4, 2, 6, 6]
    assert PromptTemplate(tokenizer, 2).instruction_ids("say") == [3, 4, 5, 6, 6]


@pytest.mark.parametrize(
    ("name", "kind", "extra"), [("spiece.model", "unigram", 100), ("own.model", "bpe", 0)]
)
def test_sentencepiece_tokenizers_survive_being_saved(name, kind, extra, tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["one two three", "three two one"] * 20),
        model_writer=model,
        vocab_size=14,
        model_type=kind,
        minloglevel=2,
    )
    (tmp_path / name).write_bytes(model.getvalue())
    tokenizer = tokenization.load_tokenizer(tmp_path / name)
    assert tokenizer.gist_id == 14 + extra
    tokenizer.save(tmp_path / "copy")
    again = tokenization.load_tokenizer(tmp_path / "copy")
    assert again.fingerprint() == tokenizer.fingerprint() and again.gist_id == tokenizer.gist_id
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert theirs.convert_tokens_to_ids("<GIST>") == tokenizer.gist_id
    assert theirs("one three", add_special_tokens=False).input_ids == tokenizer.encode("one three")
    unknown = again.encode("one 中 two")
    assert again.decode(unknown).split() == ["one", "two"]


def test_cutting_keeps_gist_tokens():
    tokenizer = tokenization.train_bpe(["one two three"], 300)
    ids = PromptTemplate(tokenizer, 3).instruction_ids("one two three", max_length=5)
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


@pytest.mark.parametrize("start", [None, 0])
@pytest.mark.parametrize("limit", [24, 32, 60])
def test_prompts_are_cut_to_the_limit(limit, start):
    tokenizer = tokenization.train_bpe(["Instruction: Input: Output: one two"] * 3, 300)
    ids = PromptTemplate(tokenizer, 2, start).prompt_ids("one " * 30, "two " * 30, limit)
    assert len(ids) == limit and ids.count(tokenizer.gist_id) == 2
    assert tokenizer.decode(ids[-7:]).endswith("\nOutput:" if start is None else "")
    assert (ids[-1] == tokenizer.eos_id) == (start is not None)


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


class Numbers:
    """A tokenizer of numbers, which are their own ids, and of the words that a prompt consists of."""

    def __init__(self, words: dict[str, list[int]]):
        self.words = words

    def encode(self, text: str) -> list[int]:
        words = re.findall(r"\n?\S+", text)
        return [i for word in words for i in (self.words.get(word) or [int(word)])]


# As the published tokenizers have them: a line break before a word makes another one of it.
WORDS = {
    "llama": {
        "Instruction:": [2799, 4080, 29901],
        "Input:": [10567, 29901],
        "Output:": [10604, 29901],
        "\nOutput:": [13, 6466, 29901],
    },
    "t5": {"Instruction:": [21035, 10], "Input:": [86, 2562, 10]},
}
PUBLISHED = json.loads((pathlib.Path(__file__).parent / "golden" / "tokens.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_token_ids(name):
    """Of prompts and outputs whose texts are numbers; golden/make_tokens.py compares the real texts."""
    tokenizer = tokenization.Tokenizer(Numbers(WORDS[name]), **PUBLISHED[name]["tokenizer"])
    for case in PUBLISHED[name]["cases"]:
        template = PromptTemplate(tokenizer, case["k"], 0 if name == "t5" else None)
        instruction, text = (" ".join(map(str, case[part])) for part in ("instruction", "input"))
        assert template.prompt_ids(instruction, text, case["max_prompt"]) == case["prompt"]
        output = " ".join(map(str, case["output"][:-1]))
        assert template.output_ids(output, case["max_output"]) == case["output"]


def test_spaces_that_the_published_tokenizer_of_t5_drops():
    text = " It 's  a cup , is n't it ?\nYes !  I 've one , and we 're , well , fine . "
    expected = "It's a cup, isn't it? Yes! I've one, and we're, well, fine."
    assert clean_up_tokenization_spaces(text) == expected
