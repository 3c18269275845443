"""A user's mistake ends in one clear sentence, and nothing is left half-written."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
import quick
import tokenizers
from commands import INSTRUCTIONS, mistake
from ml_collections import ConfigDict

import gist_jax
from gist_jax import compress, evaluate, generate, train
from gist_jax.data.tokenization import SPECIAL_TOKENS, from_tokenizers, train_bpe
from gist_jax.errors import UserError
from gist_jax.inference.language_model import LanguageModel
from gist_jax.models import registry
from gist_jax.training.run import prepare
from gist_jax.training.validation import validate

llama_alone = pytest.mark.parametrize("model_family", ["llama"], indirect=True)


def test_damaged_checkpoints(tmp_path):
    golden = pathlib.Path(__file__).parent / "golden" / "llama"
    for text in ("{", "[]", '{"model_type": "llama"}', '{"model_type": "llama", "hidden_size": "x"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError):
            gist_jax.load(tmp_path)
    (tmp_path / "config.json").write_bytes((golden / "config.json").read_bytes())
    with pytest.raises(UserError, match="has neither model.safetensors nor"):
        gist_jax.load(tmp_path)
    weights = (golden / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(UserError, match="cannot read .*model.safetensors"):
        gist_jax.load(tmp_path)
    fields = json.loads((golden / "config.json").read_text()) | {"intermediate_size": 48}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"tensor model.layers.0.mlp.down_proj.weight .* has shape"):
        gist_jax.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match="index.json"):
        gist_jax.load(tmp_path)


@llama_alone
def test_damaged_workdirs(workdir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json"):
        gist_jax.load(copy)
    (copy / "config.json").write_bytes((workdir / "config.json").read_bytes())
    for file in (copy / "checkpoints").rglob("params/**/*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        gist_jax.load(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        gist_jax.load(copy)


@llama_alone
def test_mistakes_with_gist_files(workdir, lm, tmp_path, monkeypatch, capsys):
    model, given = f"--model={workdir}", "--input=red"
    file = tmp_path / "x.gist.safetensors"
    lm.compress(INSTRUCTIONS).save(file)

    missing = mistake(generate, monkeypatch, capsys, model, "--gist=nowhere", given)
    assert missing.startswith("error: cannot read the gist cache nowhere")
    for size in (0, 5, 200, file.stat().st_size - 1):
        (tmp_path / "cut").write_bytes(file.read_bytes()[:size])
        cut = mistake(generate, monkeypatch, capsys, model, f"--gist={tmp_path}/cut", given)
        assert cut.startswith("error: cannot read the gist cache")
    number = mistake(generate, monkeypatch, capsys, model, f"--gist={file}", *[given] * 3)
    assert number == "error: there are 2 gist caches for 3 inputs: give one, or one for each"

    for other in (
        dict(params=jax.tree.map(lambda x: x * 1.5, registry.init(lm.config, jax.random.key(0)))),
        dict(
            params=registry.init(lm.config, jax.random.key(0)),
            tokenizer=dataclasses.replace(lm.tokenizer, bos_id=5),
        ),
    ):
        settings = dict(config=lm.config, tokenizer=lm.tokenizer, num_gist_tokens=1) | other
        LanguageModel.from_params(**settings).compress(INSTRUCTIONS[:1]).save(file)
        made = mistake(generate, monkeypatch, capsys, model, f"--gist={file}", given)
        assert made == "error: the gist cache was made by another model or tokenizer"


@llama_alone
def test_mistakes_with_instructions(workdir, lm, tmp_path, monkeypatch, capsys):
    model, output = f"--model={workdir}", f"--output={tmp_path}/x"

    def refused(instruction):
        return mistake(compress, monkeypatch, capsys, model, f"--instruction={instruction}", output)

    assert refused("  ") == "error: the instruction is empty: there is nothing to compress"
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="there is no instruction"):
        lm.compress([])
    with pytest.raises(ValueError, match="either gists or instructions"):
        lm.generate(inputs=["red"])
    with pytest.raises(ValueError, match="temperature must be in 0 … 1e.06, but is -1"):
        lm.generate(instructions=INSTRUCTIONS[:1], inputs=["red"], temperature=-1)


def test_prompts_longer_than_the_positions_of_a_model(lm):
    """T5 knows relative positions only, and has no limit."""
    spoken = ["word " * 100]
    if lm.config.max_positions == 96:
        with pytest.raises(ValueError, match="but the model has only 96 positions"):
            lm.compress(spoken)
        with pytest.raises(ValueError, match="96 positions"):
            lm.generate(instructions=INSTRUCTIONS[:1], inputs=["red"], max_new_tokens=90)
    else:
        cached = lm.generate(lm.compress(spoken), inputs=["red"], max_new_tokens=4)
        assert cached == lm.generate(instructions=spoken, inputs=["red"], max_new_tokens=4)


@llama_alone
def test_models_that_cannot_compress(lm):
    control = dataclasses.replace(lm, condition="neg_control")
    with pytest.raises(ValueError, match="trained as neg_control"):
        control.compress(INSTRUCTIONS)
    small = dataclasses.replace(lm.config, vocab_size=lm.config.vocab_size - 1)
    with pytest.raises(ValueError, match="this model has no gist token"):
        dataclasses.replace(lm, config=small).compress(INSTRUCTIONS)


def test_a_checkpoint_that_was_not_trained_for_gisting(tmp_path, model_family):
    """Its vocabulary is padded, so the id of the gist token has a row, but not a trained one."""
    golden = pathlib.Path(__file__).parent / "golden" / model_family
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((golden / file).read_bytes())
    tokenizer = train_bpe(["a b"], 260)
    vocabulary = {f"t{i}": i for i in range(tokenizer.vocab_size)}
    for size in (60, 102):  # the model has 103 rows
        names = [*list(vocabulary)[: size - 3], "<pad>", "<s>", "</s>"]
        words = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "<pad>")
        from_tokenizers(tokenizers.Tokenizer(words), SPECIAL_TOKENS).save(tmp_path)
        if size == 102:  # the gist token is the last row: a gist checkpoint, as published
            assert len(gist_jax.load(tmp_path).compress(["t1 t2"])) == 1
        else:
            # Without the gist token that our own loader added.
            (tmp_path / "tokenizer.json").write_text(tokenizers.Tokenizer(words).to_str())
            with pytest.raises(ValueError, match="this model has no gist token"):
                gist_jax.load(tmp_path).compress(["t1 t2"])


@llama_alone
def test_mistakes_with_models(tmp_path, workdir, monkeypatch, capsys):
    arguments = "--instruction=x", f"--output={tmp_path}/x"
    missing = mistake(compress, monkeypatch, capsys, "--model=./nowhere", *arguments)
    assert missing == "error: there is no directory ./nowhere"
    empty = mistake(compress, monkeypatch, capsys, f"--model={tmp_path}", *arguments)
    assert "neither a trained run nor a Hugging Face checkpoint" in empty
    split = mistake(evaluate, monkeypatch, capsys, f"--model={workdir}", "--split=test")
    assert split.startswith("error: there is no split 'test': choose from train")
    both = mistake(evaluate, monkeypatch, capsys)
    assert both == "error: one of the arguments --model --predictions is required (see --help)\n"
    output = f"--output={tmp_path}"
    folder = mistake(compress, monkeypatch, capsys, f"--model={workdir}", "--instruction=x", output)
    assert "is not the name of a file" in folder
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("num_gist_tokens", 0, "config.num_gist_tokens is 0, but config.condition is 'gist'"),
        ("num_gist_tokens", -1, "config.num_gist_tokens must be at least 0, but is -1"),
        (
            "gist_token_choices",
            (1, 0),
            "config.gist_token_choices is .1, 0. but must be numbers above 0",
        ),
        ("adapter.rank", 4, "an adapter needs a model to start from: set config.pretrained"),
        ("adapter.rank", -1, "config.adapter.rank must not be negative"),
        ("adapter.targets", ("query", "keys"), "names 'keys' but there are query, key, value"),
        ("loss.kind", "kl", "config.loss.kind is 'kl' but must be one of cross_entropy, distill"),
        ("loss.kind", "distill", "distillation needs a model to start from"),
        ("loss.temperature", 0.0, "config.loss.temperature must be above 0"),
        ("loss.cross_entropy", 1.5, "config.loss.cross_entropy must be in 0 … 1"),
        ("data.template", "chats", "config.data.template is .chats. but must be one of paper, chat"),
        ("data.template", "chat", "the tokenizer has no chat template"),
        ("data.buckets", (600,), "config.data.buckets is .600,. but must be lengths below"),
        ("data.workers", -1, "config.data.workers must not be negative"),
        ("condition", "gits", "config.condition is 'gits' but must be one of gist"),
        ("data.batch_size", 6, "a batch of 6 rows in 1 microbatch.* does not divide over the 8 devices"),
        ("mesh.fsdp", 3, "does not fit the 8 devices"),
        ("optimizer.accumulate", 3, "must be a multiple of config.optimizer.accumulate"),
        ("data.source", "/nowhere", "/nowhere is neither 'instructions', nor a file"),
        ("data.tokenizer", "/nowhere", "there is no tokenizer at /nowhere"),
        ("data.max_length", 97, "do not fit into the model's 96 positions"),
        ("evaluation.max_input_length", 90, "do not fit into the model's 96 positions"),
        ("num_gist_tokens", 30, "leaves no room for an instruction with 30 gist"),
        ("optimizer.clip_norm", 0.0, "config.optimizer.clip_norm must be above 0"),
        ("optimizer.warmup_steps", -1, "config.optimizer.warmup_steps must not be negative"),
        ("checkpoint.metric", "validation_seen/rougel", "must be one of validation_seen/rouge1"),
        ("optimizer.learning_rate", float("nan"), "config.optimizer.learning_rate must be above 0"),
        ("seed", -1, "config.seed must not be negative"),
        ("attention", "cudnn", "the device is a cpu"),
        ("data.tokenizer", "bpe:7", "write bpe:4096"),
        ("pretrained", "/nowhere", "there is no directory /nowhere"),
        ("data.source", "", "config.data.source is empty"),
        ("log.wandb", True, "needs the package wandb"),
        ("model.family", "gpt", "config.model.family is 'gpt' but must be one of llama, t5"),
        ("model.family", "t5", "config.model.family is 't5' but the fields of config.model are those"),
        ("dropout", 0.1, "config.dropout is 0.1, but llama has no dropout"),
        ("dropout", 1.0, "config.dropout must be in 0 … 1"),
        ("evaluation.splits", {"a": {"max_new": 3}}, "splits.a must be whole numbers, by max_new_tok"),
        ("evaluation.splits", {"a": {"max_new_tokens": "3"}}, "splits.a must be whole numbers"),
        ("evaluation.splits", {"a": 3}, "splits.a must be whole numbers"),
        (
            "evaluation.splits",
            {"a": {"max_new_tokens": 0}},
            "splits.a.max_new_tokens must be at least 1",
        ),
        ("evaluation.splits", {"a": {"max_input_length": 9}}, "leaves no room for an instruction"),
        (
            "evaluation.splits",
            {"validation_human": {"max_new_tokens": 80}},
            "prompts of 48 and 80 new tokens do not fit into the model's 96 positions",
        ),
        ("model.num_kv_heads", 3, r"num_heads \(2\) must be a multiple of num_kv_heads \(3\)"),
    ],
)
def test_mistakes_in_a_config(field, value, sentence, tmp_path):
    config = quick.get_config()
    if isinstance(value, dict):
        config.evaluation.splits = ConfigDict(value)
    else:
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=sentence):
        prepare(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_dropout_and_attention_that_has_none(tmp_path):
    config = quick.get_config("t5")
    config.attention = "cudnn"
    with pytest.raises(ValueError, match="'cudnn', which has no dropout: set config.dropout to 0"):
        prepare(config, tmp_path)


def test_attention_of_the_device_that_is_compiled_for():
    config = quick.get_config()
    config.attention = "cudnn"
    validate(config, "gpu")
    with pytest.raises(ValueError, match="'cudnn', but the device is a tpu"):
        validate(config, "tpu")


def test_unknown_field_in_a_config_file(tmp_path):
    config = quick.get_config()
    with config.unlocked():
        config.optimizer.learning_rat = 0.1
    with pytest.raises(ValueError, match="unknown config field optimizer.learning_rat"):
        prepare(config, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--config=tests/helpers/quick.py", "--workdir=X", "--config.optimizer.learning_rat=1"],
            "learning_rat",
        ),
        (["--config=tests/helpers/quick.py", "--workdir=X", "--config.num_gist_tokens=0"], "is 0, but"),
    ],
)
def test_mistakes_of_the_train_command(arguments, sentence, tmp_path):
    root = pathlib.Path(__file__).parent.parent
    arguments = [a.replace("=X", f"={tmp_path}/run") for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "gist_jax.train", *arguments], cwd=root, capture_output=True, text=True
    )
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_other_mistakes_of_the_train_command(tmp_path, monkeypatch, capsys):
    config, workdir = "--config=tests/helpers/quick.py", f"--workdir={tmp_path}/run"
    for arguments, sentence in (
        ([config], "workdir"),
        (["--config=tests/nowhere.py", workdir], "nowhere.py"),
        ([config, workdir, "--config.num_steps=few"], "num_steps"),
    ):
        text = mistake(train, monkeypatch, capsys, *arguments)
        assert sentence in text and len(text.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
