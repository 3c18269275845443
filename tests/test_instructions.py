"""The embedded instruction corpus: what is held out stays held out, and the outputs are right."""

import itertools
import multiprocessing
import pathlib
import pickle
import random
import zlib

import pytest
from rouge_score import rouge_scorer

from gist_jax.data import instructions
from gist_jax.data.instructions import FAMILIES, SPLITS, Corpus, is_validation_pair
from gist_jax.data.instructions.build_tokenizer import tokenizer_text
from gist_jax.data.instructions.corpus import TOKENIZER_FILE, UNSEEN_KINDS
from gist_jax.data.instructions.words import HELD_OUT_NOUNS, NOUNS, OPPOSITE, PLURAL

TRAIN_DRAWS = 60_000
VALIDATION = SPLITS[1:]
# Of the first 100 training examples. It changes with the corpus, and old results with it.
DIGEST = 3446570819


def read(split):
    return [Corpus(split)[i] for i in range(len(Corpus(split)))]


@pytest.fixture(scope="module")
def train():
    corpus = Corpus("train")
    return [corpus[i] for i in range(TRAIN_DRAWS)]


@pytest.fixture(scope="module")
def validation():
    return {split: read(split) for split in VALIDATION}


@pytest.fixture(scope="module")
def train_instructions():
    """Every instruction that training can ever draw, mapped to its family."""
    return {
        family.instruction(wording, arguments).lower(): family.name
        for family in FAMILIES
        for arguments in family.train_arguments
        for wording in itertools.chain(*family.train_wordings)
    }


@pytest.fixture(scope="module")
def tokenizer():
    return instructions.load_tokenizer()


def test_train_draws_from_the_enumerated_instructions_only(train, train_instructions):
    for example in train:
        assert train_instructions[example["instruction"].lower()] == example["source"]
        assert not is_validation_pair(example["instruction"], example["input"])


def test_no_two_instructions_of_training_have_the_same_text(train_instructions):
    count = sum(
        len(family.train_arguments) * len(list(itertools.chain(*family.train_wordings)))
        for family in FAMILIES
    )
    assert len(train_instructions) == count


def test_seen_instructions_are_trainable_with_inputs_that_never_are(validation, train_instructions):
    for example in validation["validation_seen"]:
        assert example["instruction"].lower() in train_instructions
        assert is_validation_pair(example["instruction"], example["input"])


@pytest.mark.parametrize("split", ["validation_unseen", "validation_human"])
def test_unseen_instructions_can_never_be_drawn_in_training(split, validation, train_instructions):
    for example in validation[split]:
        assert example["instruction"].lower() not in train_instructions


def test_no_held_out_instruction_is_trainable(train_instructions):
    for family in FAMILIES:
        every = (*family.train_arguments, *family.held_out_combinations, *family.held_out_values)
        train_wordings = tuple(itertools.chain(*family.train_wordings))
        held_out = itertools.chain(
            itertools.product(family.held_out_wordings, every),
            itertools.product(train_wordings, every[len(family.train_arguments) :]),
        )
        for wording, arguments in held_out:
            assert family.instruction(wording, arguments).lower() not in train_instructions


def test_the_three_kinds_of_unseen(validation, train_instructions):
    """Held-out combinations have known parts; held-out values are in no training instruction."""
    assert UNSEEN_KINDS.count("value") / len(UNSEEN_KINDS) <= 0.2
    words = {word for text in train_instructions for word in text.replace(",", " ").split()}
    assert not HELD_OUT_NOUNS & {word.strip(".?:") for word in words}
    for index, example in enumerate(validation["validation_unseen"]):
        kind = UNSEEN_KINDS[index % len(UNSEEN_KINDS)]
        text = example["instruction"].lower().translate(str.maketrans("", "", ".,?:"))
        assert HELD_OUT_NOUNS.isdisjoint(text.split()) == (kind != "value")
    for family in FAMILIES:
        assert len(family.held_out_wordings) >= 2
        for arguments in family.held_out_combinations:
            assert arguments not in family.train_arguments
            if len(family.fields) > 1:  # every single value is known within the family
                for name, value in arguments.items():
                    assert any(known[name] == value for known in family.train_arguments)


def test_held_out_wordings_use_words_of_training_only(train_instructions):
    def split(text):
        return set("".join(c if c.isalpha() else " " for c in text.lower()).split())

    known = set().union(*(split(text) for text in train_instructions))
    for family in FAMILIES:
        for wording in family.held_out_wordings:
            text = family.instruction(wording, family.train_arguments[0])
            assert split(text) <= known, text


def test_no_pair_and_no_held_out_instruction_in_two_splits(train, validation):
    pairs = [{(e["instruction"], e["input"]) for e in split} for split in (train, *validation.values())]
    for one, other in itertools.combinations(pairs, 2):
        assert not one & other
    texts = [{e["instruction"] for e in validation[split]} for split in VALIDATION]
    for one, other in itertools.combinations(texts, 2):
        assert not one & other


@pytest.mark.parametrize("split", SPLITS)
def test_examples_depend_on_the_index_alone(split):
    corpus = Corpus(split)
    copy = pickle.loads(pickle.dumps(corpus))
    indices = random.Random(0).sample(range(len(corpus)), 50)
    assert [corpus[i] for i in indices] == [copy[i] for i in indices]
    assert repr(copy) == repr(corpus)
    with pytest.raises(IndexError):
        corpus[len(corpus)]


def test_the_same_examples_in_another_process_and_ever_after():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(Corpus("train").__getitem__, range(100))
    here = [Corpus("train")[i] for i in range(100)]
    assert here == there
    assert Corpus("train", seed=1)[0] != here[0]
    digest = zlib.crc32(repr([list(example.values()) for example in here]).encode())
    assert digest == DIGEST, "the corpus has changed: results are no longer comparable"


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="validation_seen"):
        Corpus("test")


def test_every_family_appears_with_its_weight(train, validation):
    total = sum(family.weight for family in FAMILIES)
    for family in FAMILIES:
        share = sum(e["source"] == family.name for e in train) / len(train)
        assert share == pytest.approx(family.weight / total, abs=0.01)
    for split in ("validation_seen", "validation_unseen"):
        assert {e["source"] for e in validation[split]} == {family.name for family in FAMILIES}


def test_lengths(train, validation):
    for example in itertools.chain(train, *validation.values()):
        assert 3 <= len(example["instruction"].split()) <= 18, example
        assert 3 <= len(example["input"].split()) <= 5
        assert 1 <= len(example["output"].split()) <= 8
    for example in train:
        assert 4 <= len(example["instruction"].split()) <= 16, example


# One (arguments, input, output) or more a family, worked out by hand.
WORKED = {
    "always": [({"word": "cat"}, "red blue bus", "cat")],
    "say_times": [({"word": "cat", "number": "two"}, "red blue bus", "cat cat")],
    "say_pair": [({"word": "cat", "colour": "red"}, "egg axe bus", "cat red")],
    "pick": [
        ({"position": "second"}, "egg axe bus car", "axe"),
        ({"position": "last"}, "egg axe bus car", "car"),
    ],
    "repeat_pick": [({"position": "third", "number": "three"}, "egg axe bus car", "bus bus bus")],
    "say_and_pick": [({"word": "cat", "position": "first"}, "egg axe bus", "cat egg")],
    "fill": [({"word": "cat"}, "egg axe bus car", "cat cat cat cat")],
    "map_all": [
        ({"kind": "plural"}, "wolf potato bus", "wolves potatoes buses"),
        ({"kind": "category"}, "wolf pink bus", "animal colour vehicle"),
        ({"kind": "opposite"}, "hot sad dry", "cold happy wet"),
    ],
    "map_one": [({"kind": "first letter", "position": "last"}, "egg axe bus", "b")],
    "find": [({"category": "food"}, "bus axe cake", "cake")],
    "keep": [({"category": "food"}, "egg axe cake", "egg cake")],
    "drop": [({"category": "food"}, "egg axe cake bus", "axe bus")],
    "count": [
        ({}, "egg axe cake bus", "four"),
        ({}, "egg axe cake", "three"),
    ],
    "contains": [
        ({"word": "axe"}, "egg axe cake", "yes"),
        ({"word": "cat"}, "egg axe cake", "no"),
    ],
    "conditional": [
        ({"category": "food", "colour": "red", "other": "blue"}, "egg axe bus", "red"),
        ({"category": "food", "colour": "red", "other": "blue"}, "axe egg bus", "blue"),
    ],
    "reverse": [({}, "egg axe bus car", "car bus axe egg")],
    "add": [
        ({"word": "cat", "place": "before"}, "egg axe bus", "cat egg axe bus"),
        ({"word": "cat", "place": "after"}, "egg axe bus", "egg axe bus cat"),
    ],
    "between": [({"word": "cat"}, "egg axe bus", "egg cat axe cat bus")],
    "replace": [({"word": "cat", "position": "last"}, "egg axe bus", "egg axe cat")],
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_outputs_worked_out_by_hand(family):
    for arguments, input_, output in WORKED[family.name]:
        assert set(arguments) == set(family.fields)
        assert " ".join(family.answer(input_.split(), arguments)) == output


def test_questions_of_two_answers_are_balanced(train):
    answers = [e["output"] for e in train if e["source"] == "contains"]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6
    conditional = next(family for family in FAMILIES if family.name == "conditional")
    arguments = {"category": "tool", "colour": "red", "other": "blue"}
    rng = random.Random(0)
    inputs = [conditional.inputs(rng, arguments) for _ in range(1000)]
    answers = [conditional.answer(words, arguments) for words in inputs]
    assert 0.4 < answers.count(["red"]) / len(answers) < 0.6


def test_lexical_maps():
    assert all(OPPOSITE[OPPOSITE[word]] == word for word in OPPOSITE)
    assert len(set(PLURAL.values())) == len(PLURAL) == 50
    assert not set(PLURAL.values()) & set(NOUNS)
    assert len(set(NOUNS)) == 60 and not set(NOUNS) & set(OPPOSITE)


def test_the_shipped_tokenizer_is_what_is_built():
    path = pathlib.Path(instructions.__file__).with_name(TOKENIZER_FILE)
    assert path.read_text(encoding="utf-8") == tokenizer_text()


def test_tokenizer(tokenizer, train, validation):
    assert [tokenizer.id_to_token(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert tokenizer.token_to_id("<GIST>") is None
    encoded = tokenizer.encode("Instruction: Say cat.")
    assert encoded.tokens == ["instruction", ":", "say", "cat", "."]
    assert tokenizer.decode(tokenizer.encode("cat  dogs").ids) == "cat dogs"
    texts = ["Instruction: Input: Output:"]
    for example in itertools.chain(train, *validation.values()):
        texts += [example["instruction"], example["input"], example["output"]]
    for encoding in tokenizer.encode_batch(texts):
        assert tokenizer.token_to_id("<unk>") not in encoding.ids, encoding.tokens


def test_decoding_gives_the_output_back(tokenizer, validation):
    for example in itertools.chain(*validation.values()):
        assert tokenizer.decode(tokenizer.encode(example["output"]).ids) == example["output"]


def test_the_input_alone_is_a_weak_baseline(validation):
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    for split in ("validation_seen", "validation_unseen"):
        metrics = [scorer.score(e["output"], e["input"])["rougeL"].fmeasure for e in validation[split]]
        assert 100 * sum(metrics) / len(metrics) < 45


def test_human_examples(validation):
    human = validation["validation_human"]
    assert len(human) >= 64
    assert len({example["instruction"] for example in human}) == len(human)
    every = {
        family.instruction(wording, arguments).lower()
        for family in FAMILIES
        for arguments in (
            *family.train_arguments,
            *family.held_out_combinations,
            *family.held_out_values,
        )
        for wording in (*itertools.chain(*family.train_wordings), *family.held_out_wordings)
    }
    for example in human:
        assert set(example) == {"instruction", "input", "output", "source"}
        assert example["instruction"].lower() not in every
