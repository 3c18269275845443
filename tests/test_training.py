"""Losses do not depend on packing; a stopped run resumes exactly."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
import tokenizers
from steps import GIST, longer_and_packed, random_adapter, random_batch

import gist_jax
from gist_jax.interop.huggingface import with_gist_token
from gist_jax.models.adapter import AdapterConfig
from gist_jax.models.dropout import Dropout
from gist_jax.training import loop, program
from gist_jax.training.config import default
from gist_jax.training.losses import LossConfig
from gist_jax.training.optimizer import make_schedule
from gist_jax.training.run import prepare
from gist_jax.training.step import StepConfig, summed_loss, train_step
from gist_jax.workdir import CHECKPOINTS, TOKENIZER, read_metrics, read_params


def test_packing_and_padding_do_not_change_the_gradient(tiny):
    """The same examples, one a row, in longer rows, and all in one row."""
    config, params = tiny
    batch = random_batch(config, rows=3)
    longer, packed = longer_and_packed(batch)
    gradient = jax.jit(jax.value_and_grad(summed_loss), static_argnums=(1, 2))

    def check(batches, params, step_config, *frozen):
        found = [gradient(params, config, step_config, batch, *frozen) for batch in batches]
        loss, gradients = found[0]
        largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradients))
        for same, same_gradients in found[1:]:
            np.testing.assert_allclose(same, loss, rtol=1e-5)
            close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5 * largest)
            jax.tree.map(close, same_gradients, gradients)

    check([batch, longer, packed], params, StepConfig("gist", GIST))
    # Longer and packed rows are of one shape, and so of one program.
    for condition in () if config.is_encoder_decoder else ("pos_control", "neg_control"):
        check([longer, packed], params, StepConfig(condition, GIST))
    # Of an adapter that is distilled: its teacher, a positive control, reads packed rows too.
    shape = AdapterConfig(2, alpha=0.2)
    step_config = StepConfig("gist", GIST, adapter=shape, loss=LossConfig("distill"))
    check([longer, packed], random_adapter(config, shape), step_config, params)


def test_loss_counts_output_tokens_only(tiny):
    config, params = tiny
    step_config, batch = StepConfig("gist", GIST), random_batch(config)
    other = {**batch, "targets": np.where(batch["weights"] > 0, batch["targets"], 7).astype(np.int32)}
    loss = jax.jit(summed_loss, static_argnums=(1, 2))
    assert loss(params, config, step_config, batch) == loss(params, config, step_config, other)
    changed = {**batch}
    for tokens, segment in (("tokens", "segment"), ("decoder_tokens", "decoder_segment")):
        if tokens in batch:
            changed[tokens] = np.where(batch[segment] > 0, batch[tokens], 11).astype(np.int32)
    changed = loss(params, config, step_config, changed)
    np.testing.assert_allclose(changed, loss(params, config, step_config, batch), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_schedule(schedule):
    config = default()
    config.num_steps = 100
    config.optimizer.update(learning_rate=2.0, warmup_steps=10, schedule=schedule)
    rate = make_schedule(config)
    values = [float(rate(step)) for step in (0, 5, 10, 55, 100)]
    assert values == pytest.approx(
        [0, 1, 2, 1, 0] if schedule == "cosine" else [0, 1, 2, 2, 2], abs=1e-6
    )


def losses(workdir):
    return [(line["step"], line["loss"]) for line in read_metrics(workdir) if "loss" in line]


llama_alone = pytest.mark.parametrize("model_family", ["llama"], indirect=True)


@pytest.mark.parametrize("model_family", ["t5"], indirect=True)
def test_a_stopped_run_resumes_with_the_same_losses(model_family, workdir, tmp_path):
    """T5's dropout included."""
    config = quick.get_config(model_family)
    config.evaluation.every = 5

    def stop(params, step, check):
        if step == 5 and not stopped:
            stopped.append(step)
            raise InterruptedError
        return {}

    stopped = []
    with pytest.raises(InterruptedError):
        loop.train(prepare(config, tmp_path), stop)
    assert losses(tmp_path)[-1][0] == 5  # later than the checkpoint, which is of step 4
    loop.train(prepare(config, tmp_path), stop)
    assert losses(tmp_path) == losses(workdir)


@llama_alone
def test_a_finished_run_does_nothing_more(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    loop.train(prepare(quick.get_config(), tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == (workdir / "metrics.jsonl").read_text()


def steps_kept(workdir):
    """Directories of checkpoints, by step."""
    return sorted((workdir / CHECKPOINTS).iterdir(), key=lambda path: int(path.name))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    def diverging(*arguments, **settings):
        state, metrics = train_step(*arguments, **settings)
        return state, {**metrics, "loss": jnp.where(state.step == 6, jnp.nan, metrics["loss"])}

    monkeypatch.setattr(program, "train_step", diverging)
    with pytest.raises(loop.Diverged, match="at step 6: training stopped"):
        loop.train(prepare(quick.get_config(), tmp_path))
    assert read_params(tmp_path)[1] == 4


def test_an_update_that_breaks_the_model_is_not_saved(tmp_path):
    """The loss of the step itself was finite; that of the parameters it leaves is not."""
    config = quick.get_config()
    config.optimizer.update(learning_rate=1e38, warmup_steps=0)
    config.checkpoint.every = 1
    with pytest.raises(loop.Diverged, match="at step 1: training stopped"):
        loop.train(prepare(config, tmp_path))
    assert not list((tmp_path / CHECKPOINTS).iterdir())


def test_a_failed_start_can_be_corrected(tmp_path):
    """A workdir without a checkpoint takes another config; with checkpoints it must say whose."""
    prepare(quick.get_config(), tmp_path)
    config = quick.get_config()
    config.optimizer.learning_rate = 0.5
    config.num_steps = 2
    loop.train(prepare(config, tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json"):
        prepare(config, tmp_path)


@llama_alone
def test_another_config_in_the_same_workdir_is_refused(workdir):
    config = quick.get_config()
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match="holds a run whose config.optimizer.learning_rate is 0.01"):
        prepare(config, workdir)


def test_a_run_of_files_resumes_without_the_cache_and_not_with_other_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    records = [{"instruction": f"say {i}", "input": "x", "output": f"{i}"} for i in range(40)]
    data = tmp_path / "train.json"
    data.write_text(json.dumps(records))
    config = quick.get_config()
    config.num_steps = 6
    config.data.update(source=str(data), tokenizer="bpe:300", buckets=(24, 32))
    config.checkpoint.metric = "none"

    def stop(params, step, check):
        raise InterruptedError

    config.evaluation.every = 5
    with pytest.raises(InterruptedError):
        loop.train(prepare(config, tmp_path / "run"), stop)
    data.write_text(json.dumps(records).replace("say 39", "say 3"))
    with pytest.raises(ValueError, match="changed since the run .* is [0-9a-f]{16}, not [0-9a-f]{16};"):
        prepare(config, tmp_path / "run")
    data.write_text(json.dumps(records))
    config.data.cache, config.evaluation.every = False, 0
    loop.train(prepare(config, tmp_path / "run"))
    config.data.cache = True
    loop.train(prepare(config, tmp_path / "other"))
    assert losses(tmp_path / "run") == losses(tmp_path / "other")
    assert all(0 <= line["padding"] < 0.5 for line in read_metrics(tmp_path / "run") if "loss" in line)


@llama_alone
def test_a_run_resumes_with_another_mesh(workdir, tmp_path):
    config = quick.get_config()
    config.checkpoint.every = 4

    def stop(params, step, check):
        if config.mesh.fsdp == 1:
            raise InterruptedError
        return {}

    with pytest.raises(InterruptedError):
        loop.train(prepare(config, tmp_path), stop)
    config.mesh.update(data=1, fsdp=8)
    loop.train(prepare(config, tmp_path), stop)
    ours, theirs = (dict(losses(path)) for path in (tmp_path, workdir))
    assert ours == pytest.approx(theirs, rel=1e-5)


def damage(path):
    """Leaves half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest_file(directory):
    return max(directory.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)


@llama_alone
def test_a_run_resumes_from_what_can_be_read(workdir, tmp_path):
    """First the metrics of the last checkpoint are damaged, then it, then the last two of three.

    The best and the last checkpoints are kept.
    """
    config = quick.get_config()
    config.evaluation.every = 2
    values = {2: 9.0, 4: 1.0, 6: 3.0, 8: 2.0}

    def train():
        def evaluate(_, step, check):
            return {config.checkpoint.metric: values[step]}

        loop.train(prepare(config, tmp_path), evaluate)
        return steps_kept(tmp_path)

    steps = train()
    assert [path.name for path in steps] == ["2", "6", "8"]
    assert read_params(tmp_path)[1] == 2
    damage(steps[-1] / "metrics" / "metrics")
    steps = train()
    assert not (steps[-1] / "metrics" / "metrics").exists()
    for aside in (["damaged-8"], ["damaged-6", "damaged-8", "damaged-8x"]):
        for name in {aside[0].removeprefix("damaged-"), "8"}:
            damage(largest_file(tmp_path / CHECKPOINTS / name))
        assert [path.name for path in train()][-1] == "8"
        assert sorted(path.name for path in tmp_path.glob("damaged-*")) == aside
        assert losses(tmp_path) == losses(workdir)


@llama_alone
def test_nothing_is_put_aside_when_no_checkpoint_can_be_read(workdir, tmp_path, monkeypatch):
    """Which may have another cause than damage."""
    config = quick.get_config()
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    before = sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir())

    def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(loop.Checkpoints, "_load", fail)
    with pytest.raises(ValueError, match="no checkpoint in .* can be read: RESOURCE_EXHAUSTED"):
        loop.train(prepare(config, tmp_path))
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == before
    assert not list(tmp_path.glob("damaged-*"))


def test_a_start_that_was_killed_while_it_described_the_run(tmp_path):
    """config.json is written last: without it nothing in the workdir counts."""
    prepare(quick.get_config(), tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / TOKENIZER / "tokenizer.json").write_text("{")
    assert prepare(quick.get_config(), tmp_path).template.tokenizer.vocab_size > 300


def test_dropout_keeps_the_mean():
    """Kept elements are scaled up, every call has another mask, and no two rows share one."""
    drop = Dropout(0.25, jax.random.split(jax.random.key(0), 2))
    first, second = (drop(jnp.ones((2, 50, 200))) for _ in range(2))
    values, counts = np.unique(first, return_counts=True)
    np.testing.assert_allclose(values, [0, 4 / 3], rtol=1e-6)
    assert counts[0] / first.size == pytest.approx(0.25, abs=0.02)
    for one, other in ((first, second), (first[0], first[1])):
        assert (one != other).mean() == pytest.approx(2 * 0.25 * 0.75, abs=0.02)


GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.mark.parametrize("stored", [101, 103])
def test_a_gist_token_is_the_mean_of_the_others(stored, golden_model):
    """Rows are added where there are too few, and padding does not count."""
    _, params = golden_model
    gist_id = 101
    room = jnp.arange(103) < stored
    before = {
        "embedding": jnp.where(room[:, None], params["embedding"], 0),
        "head": {"kernel": jnp.where(room, params["head"]["kernel"], 0)},
    }
    rows = before["embedding"][:gist_id]
    column = before["head"]["kernel"][:, :gist_id].mean(axis=1)
    kept = np.array(rows)
    after = with_gist_token(before, gist_id=gist_id, stored=stored)
    for added in (gist_id, *range(stored, 103)):
        np.testing.assert_allclose(after["embedding"][added], kept.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(after["head"]["kernel"][:, added], column, atol=1e-6)
    np.testing.assert_array_equal(after["embedding"][:gist_id], kept)


def finetuning(directory, model_family):
    """The config of a run from a Hugging Face checkpoint without gist token, on 50 examples."""
    (directory / "base").mkdir()
    for file in ("config.json", "model.safetensors"):
        (directory / "base" / file).write_bytes((GOLDEN / model_family / file).read_bytes())
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(100))]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(directory / "base" / "tokenizer.json"))
    records = [{"instruction": f"w{i}", "input": f"w{i + 1}", "output": f"w{i + 2}"} for i in range(50)]
    (directory / "train.json").write_text(json.dumps(records))
    config = quick.get_config(model_family)
    config.pretrained = str(directory / "base")
    config.data.source = str(directory / "train.json")
    config.num_steps = 4
    return config


def test_a_checkpoint_that_is_finetuned(tmp_path, model_family):
    """Its vocabulary is extended; the decoder-only one is trained, stopped, and resumed."""
    config = finetuning(tmp_path, model_family)

    run = prepare(config, tmp_path / "run")
    assert run.model.vocab_size == 104 and run.template.tokenizer.gist_id == 103
    start = run.init()
    mean = np.mean(start["embedding"][:103], axis=0)
    np.testing.assert_allclose(start["embedding"][103], mean, atol=1e-6)
    if model_family == "t5":  # whose training is that of any run
        return
    state = loop.train(run)
    assert int(state.step) == 4
    again = loop.train(prepare(config, tmp_path / "run"))
    np.testing.assert_array_equal(again.params["embedding"], state.params["embedding"])
    assert len(gist_jax.load(tmp_path / "run").compress(["w1 w2"])) == 1
