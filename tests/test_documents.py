"""Documents: where they come from, the windows they are cut into, and how well a model predicts them."""

import json

import jax
import numpy as np
import pytest
import quick

from gist_jax.data.batching import batches_in_order, training_batches
from gist_jax.data.documents import Documents
from gist_jax.data.prompt_template import PromptTemplate
from gist_jax.data.record_files import write_array_record
from gist_jax.data.rows import make_row
from gist_jax.data.sources import load_data, load_splits
from gist_jax.data.token_cache import TokenCache, token_cache
from gist_jax.data.tokenization import train_bpe
from gist_jax.data.windows import Windows
from gist_jax.errors import UserError
from gist_jax.evaluation.predict import evaluator
from gist_jax.training.examples import examples_to_evaluate, training_examples
from gist_jax.training.loop import train
from gist_jax.training.run import prepare
from gist_jax.workdir import best_evaluation, best_step, read_metrics

TEXTS = ["", "ä", "Tea is hot. " * 9, "No.", "<GIST> and </s> are text here. " * 5, "a b c d e f g"]
TEXTS = TEXTS[1:]
TOKENIZER = train_bpe(TEXTS, 280)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def test_all_kinds_of_sources(tmp_path):
    records = [{"text": text, "author": "x"} for text in TEXTS]
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "json" / "validation_a.jsonl").write_text(json.dumps({"text": "held out"}))
    write_array_record(tmp_path / "x.array_record", [{"content": text} for text in TEXTS])
    for folder in ("flat", "split/train", "split/validation_a"):
        (tmp_path / folder).mkdir(parents=True)
        for i, text in enumerate(TEXTS if folder[-1] != "a" else ["held out"]):
            (tmp_path / folder / f"{i}.txt").write_text(text, encoding="utf-8")
    sources = (
        f"{tmp_path}/json",
        f"arrayrecord:{tmp_path}/x.array_record?text=content",
        f"text:{tmp_path}/flat",
        f"text:{tmp_path}/split?compress=0.25",
    )
    for source in sources:
        data = load_data(source, documents=True)
        assert list(data.splits["train"]) == [{"text": text} for text in TEXTS], source
        assert data.splits["train"].compress == (0.25 if "0.25" in source else 0)
        with pytest.raises(UserError, match="holds documents, which have no instructions"):
            load_splits(source)
        if "json" in source or "split" in source:
            assert list(data.splits["validation_a"]) == [{"text": "held out"}]
    mixture = f"{tmp_path}/json + 2*instructions"
    assert len(load_data(mixture, documents=True).splits) > 2
    with pytest.raises(UserError, match="holds documents"):
        load_splits(mixture)
    (one,) = load_data(f"text:{tmp_path}/flat/0.txt", documents=True).splits["train"]
    assert one == {"text": TEXTS[0]}


@pytest.mark.parametrize(
    "content, source, sentence",
    [
        ('[{"text": " "}]', "json:{}", "record 0 of .* must have a text that is a non-empty text"),
        ('[{"text": "a"}, {"text": 3}]', "json:{}", "record 1 of .* must have a text"),
        ('[{"text": "\\ud800"}]', "json:{}", "record 0 of .* is not valid Unicode"),
        ('[{"text": "a"}]', "json:{}?compress=1.5", "compress=1.5 is no share"),
        ('[{"text": "a"}]', "json:{}?compress=half", "compress=half is no share"),
        ('[{"text": "a"}]', "json:{}?text=text&output=text", "either the field of documents or"),
        ("[]", "text:{}/none", "is neither a file nor a directory with .txt files"),
        (b"\xff\xfe\xff", "text:{}", "cannot read"),
    ],
)
def test_mistakes(content, source, sentence, tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence):
        list(load_data(source.format(file), documents=True).splits["train"])


def windows(max_length, compress=0.0, k=2, start=None, max_output_length=8):
    template = PromptTemplate(TOKENIZER, k, start)
    documents = Documents([{"text": text} for text in TEXTS], "text", "here", compress)
    cache = token_cache(documents, template, "documents")
    return template, Windows(cache, template, compress, max_length, max_output_length)


@pytest.mark.parametrize("max_length", [5, 16, 200])
@pytest.mark.parametrize("compress", [0.0, 0.5, 0.8])
def test_windows_hold_every_token_once_and_fit(max_length, compress):
    max_length += 4 if compress else 0
    template, found = windows(max_length, compress)
    bos, eos, gist = TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.gist_id
    ids, row = [], make_row(template, max_length, 8)
    for i in range(len(found)):
        example = found[i]
        head, rest = example.instruction, list(example.output)
        made = row.map(example)
        assert len(made["tokens"]) <= max_length
        if compress:
            assert head[0] == bos and len(head) > 1 and rest
            assert made["tokens"].tolist() == [*head, gist, gist, *rest[:-1]]
            assert made["weights"].sum() == len(rest)  # the rest alone is predicted
            ids += [*head[1:], *rest]
        else:
            assert head == [] and example.input == [bos]
            assert made["tokens"].tolist() == [bos, *rest[:-1]] and made["weights"].all()
            ids += rest
    whole = [i for text in TEXTS for i in [*TOKENIZER.encode(text), eos]]
    # Where nothing but the end of sequence was left over, it is left out.
    assert [i for i in ids if i != eos] == [i for i in whole if i != eos]
    spread = found.spread(3)
    assert len(spread) == 3 and spread[0] == found[0] and spread[-1] != found[2]
    assert found.spread(10**6) == [found[i] for i in range(len(found))]
    with pytest.raises(IndexError):
        found[len(found)]


def test_an_encoder_reads_what_is_compressed():
    template, found = windows(12, 0.5, k=1, start=0, max_output_length=6)
    row = make_row(template, 12, 6)
    for i in range(len(found)):
        made = row.map(found[i])
        assert len(made["tokens"]) <= 12 and len(made["targets"]) <= 6
        assert made["targets"].tolist() == list(found[i].output)  # nothing is cut
        assert made["tokens"].tolist()[-2:] == [TOKENIZER.gist_id, TOKENIZER.eos_id]
    with pytest.raises(UserError, match="documents are for decoders"):
        windows(12, start=0)


def test_losses_of_prompts():
    template, example = (
        PromptTemplate(TOKENIZER, 2),
        {"instruction": "Tea", "input": "", "output": "No."},
    )
    encoded = template.encode_one(example)
    row = make_row(template, 64, 8, predicts_prompt=True).map(encoded)
    assert ((row["weights"] == 0) == (row["targets"] == TOKENIZER.gist_id)).all()
    assert row["weights"].sum() == len(row["targets"]) - 2
    # Whatever the number of gist tokens and however rows are filled.
    sizes = dict(batch_size=2, max_length=64, max_output_length=8, seed=0, predicts_prompt=True)
    for options in (dict(pack=True), dict(pack=False, gist_token_choices=(1, 2))):
        batch = next(training_batches([example] * 8, template, **sizes, **options))
        gists = batch["targets"] == TOKENIZER.gist_id
        assert gists.any() and not batch["weights"][gists].any()
        assert batch["weights"].sum() > batch["segment"].sum() / 2
    (batch,) = batches_in_order([encoded], template, batch_size=3, max_length=64, max_output_length=8)
    assert batch["tokens"].shape == (3, 64) and not batch["segment"][1:].any()
    assert batch["weights"].sum() == len(encoded.output)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Documents and instructions."""
    folder = tmp_path_factory.mktemp("documents")
    for name, texts in (("train", TEXTS * 3), ("validation_text", TEXTS)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return folder


def config_of(source, **fields):
    config = quick.get_config()
    config.num_steps, config.condition, config.num_gist_tokens = 6, "pos_control", 0
    config.data.update(source=f"json:{source}", tokenizer="bpe:280", pack=True, max_length=32)
    config.evaluation.update(kind="loss", every=3, num_examples=9)
    config.checkpoint.metric = "validation_text/nats_per_byte"
    config.update_from_flattened_dict(fields)
    return config


def test_pretraining_and_gist_pretraining(source, tmp_path):
    run = prepare(config_of(source), tmp_path / "base")
    train(run, evaluator(run))
    metrics = best_evaluation(tmp_path / "base", "validation_text/nats_per_byte")
    # The untrained model knows nothing: log(281) nats a token, of the tokens and bytes of all texts.
    tokens = sum(len(TOKENIZER.encode(text)) + 1 for text in TEXTS)
    per_byte = tokens / sum(len(f" {text}".encode()) for text in TEXTS)
    ratio = metrics["validation_text/nats_per_byte"] / metrics["validation_text/loss"]
    assert ratio == pytest.approx(per_byte, rel=0.1)
    steps = [line for line in read_metrics(tmp_path / "base") if "validation_text/loss" in line]
    assert [line["step"] for line in steps] == [3, 6]
    assert steps[1]["validation_text/loss"] < steps[0]["validation_text/loss"] < np.log(300)
    # Another number of rows at a time does not change what is measured.
    changed = evaluator(prepare(config_of(source, **{"data.batch_size": 16}), tmp_path / "other"))
    with jax.set_mesh(run.program.mesh):
        again = changed(train(run).params, 6, lambda: None)
    assert again["validation_text/loss"] == pytest.approx(steps[1]["validation_text/loss"], rel=1e-5)
    # The first half of every window compressed, from that base.
    gist = config_of(f"{source}?compress=0.5", condition="gist", num_gist_tokens=2)
    gist.pretrained = str(tmp_path / "base")
    run = prepare(gist, tmp_path / "gist")
    train(run, evaluator(run))
    assert len(read_metrics(tmp_path / "gist")) == 8
    with pytest.raises(UserError, match="are kept"):
        prepare(config_of(source, **{"data.cache": False}), tmp_path / "streamed")
    with pytest.raises(UserError, match="holds documents"):
        prepare(config_of(source, **{"evaluation.kind": "generation"}), tmp_path / "generated")
    with pytest.raises(UserError, match="must be one of validation_text/loss"):
        prepare(config_of(source, **{"checkpoint.metric": "validation_text/rougeL"}), tmp_path / "x")


def test_a_split_of_documents_and_instructions(source, tmp_path):
    """Each has its share of what is evaluated, and of what is trained on."""
    records = [{"instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in range(30)]
    (tmp_path / "validation_text.json").write_text(json.dumps(records))
    (tmp_path / "train.json").write_text(json.dumps(records))
    mixture = f"3*json:{source} + 1*json:{tmp_path}"
    data = load_data(mixture, documents=True)
    config = config_of(source, **{"data.source": mixture, "evaluation.num_examples": 8})
    template = PromptTemplate(TOKENIZER, 0)
    chosen = examples_to_evaluate(config, data.splits["validation_text"], template, "mixed")
    assert [bool(example.instruction) for example in chosen] == [False] * 6 + [True] * 2
    encoded = training_examples(config, data.splits["train"], template, data.fingerprint)
    assert [type(part) for part in encoded.parts] == [Windows, TokenCache]
    sizes = dict(batch_size=4, max_length=32, max_output_length=8, seed=0)
    batch = next(training_batches(encoded, template, pack=True, **sizes))
    assert (batch["segment"] > 0).mean() > 0.7


def test_of_losses_the_lowest_is_the_best():
    found = {1: {"a/loss": 2.0, "a/rougeL": 2.0}, 2: {"a/loss": 1.0, "a/rougeL": 1.0}, 3: None}
    assert best_step(found, "a/loss") == 2 and best_step(found, "a/rougeL") == 1
    equal = {1: {"a/nats_per_byte": 1.0}, 2: {"a/nats_per_byte": 1.0}}
    assert best_step(equal, "a/nats_per_byte") == 2
