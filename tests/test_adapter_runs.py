"""Runs of an adapter, and what becomes of them: directories, caches for the bare base, labels."""

import dataclasses
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from commands import INPUTS, INSTRUCTIONS, command, mistake

from gist_jax import compress, convert, generate, label
from gist_jax.data.sources import load_data
from gist_jax.evaluation import labels
from gist_jax.evaluation.predict import evaluator
from gist_jax.inference import decode
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.load import load
from gist_jax.models.adapter import Adapter
from gist_jax.training import distributed
from gist_jax.training.loop import train
from gist_jax.training.run import prepare
from gist_jax.workdir import ADAPTER, CHECKPOINTS, read_metrics, read_params

# Of both families test_adapter.py tests what an adapter computes, and test_formats.py that it writes.
pytestmark = pytest.mark.parametrize("model_family", ["llama"], indirect=True)


def files(workdir: pathlib.Path) -> dict[str, str]:
    """A hash of every file."""
    found = (path for path in sorted(workdir.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def config_of(model_family, **settings):
    config = quick.get_config(model_family)
    config.update_from_flattened_dict({name.replace("__", "."): x for name, x in settings.items()})
    return config


@pytest.fixture(scope="module")
def base(tmp_path_factory, model_family):
    """A run without gist tokens."""
    path = tmp_path_factory.mktemp("base") / "run"
    train(prepare(config_of(model_family, num_gist_tokens=0, condition="pos_control"), path))
    return path


def adapter_settings(base, **settings):
    usual = dict(pretrained=str(base), adapter__rank=4, loss__kind="distill", data__pack=True)
    return {**usual, "gist_token_choices": (1, 3), **settings}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, model_family, base):
    """A run of an adapter of that base; and hashes of the base's files before."""
    path, before = tmp_path_factory.mktemp("adapter") / "run", files(base)
    run = prepare(config_of(model_family, **adapter_settings(base)), path)
    train(run, evaluator(run))
    return path, before


def test_a_run_without_gist_tokens(base, tmp_path, monkeypatch, capsys):
    model = load(base)
    assert model.num_gist_tokens == 0 and model.condition == "pos_control"
    ids = model.template.prompt_ids(INSTRUCTIONS[0], INPUTS[0], 96)
    assert model.tokenizer.gist_id not in ids
    assert len(model.generate(instructions=INSTRUCTIONS, inputs=INPUTS)) == 2
    with pytest.raises(ValueError, match="has no gist token"):
        model.compress(INSTRUCTIONS)


def test_a_run_of_an_adapter(model_family, base, adapted):
    path, before = adapted
    assert files(base) == before
    params, _ = read_params(path)
    size = sum(x.size for x in jax.tree.leaves(params))
    assert "gist_embedding" in params and "embedding" not in params
    assert size < sum(x.size for x in jax.tree.leaves(read_params(base)[0])) / 3
    metrics = {name for line in read_metrics(path) for name in line}
    assert {"validation_seen/rougeL", "validation_seen_k1/rougeL"} <= metrics
    model, bare = load(path), load(base)
    jax.tree.map(np.testing.assert_array_equal, model.params, bare.params)
    assert "k = 1 or 3" in repr(model) and "adapter of rank 4" in repr(model)

    gists = model.compress(INSTRUCTIONS)
    assert gists.num_gist_tokens == 3 and gists.origin.adapter and not bare.origin.adapter
    texts = model.generate(gists, inputs=INPUTS, max_new_tokens=8)
    assert bare.generate(gists, inputs=INPUTS, max_new_tokens=8) == texts
    assert model.generate(instructions=INSTRUCTIONS, inputs=INPUTS, max_new_tokens=8) == texts
    without = dataclasses.replace(
        model, adapter=Adapter(jax.tree.map(jnp.zeros_like, model.adapter.params), model.adapter.config)
    )
    assert (
        np.abs(
            without.compress(INSTRUCTIONS).memory.cache.values[-1] - gists.memory.cache.values[-1]
        ).max()
        > 1e-3
    )
    one = model.compress(INSTRUCTIONS, num_gist_tokens=1)
    assert one.num_gist_tokens == 1
    with pytest.raises(ValueError, match="trained with k = 1, 3, not 2"):
        model.compress(INSTRUCTIONS, num_gist_tokens=2)


def test_texts_run_the_programs_of_the_base(base, adapted):
    """Which are the same, so that their logits are equal bit for bit."""
    model, bare = load(adapted[0]), load(base)
    ids = bare.template.prompt_ids(INSTRUCTIONS[0], INPUTS[0], 96)
    settings = [ids], None, 4
    expected = bare.generate_ids(*settings)
    programs = decode.generate._cache_size()
    same = dataclasses.replace(model, condition=bare.condition)
    np.testing.assert_array_equal(same.generate_ids(*settings), expected)
    assert decode.generate._cache_size() == programs


def test_an_adapter_resumes(model_family, base, adapted, tmp_path):
    """Stopped, and resumed by another process, it comes to the same losses."""
    config = config_of(model_family, **adapter_settings(base))

    def stop(params, step, check):
        if step == 4:
            raise KeyboardInterrupt
        return {}

    config.evaluation.every = 4
    with pytest.raises(KeyboardInterrupt):
        train(prepare(config, tmp_path / "run"), stop)
    train(prepare(config, tmp_path / "run"))
    losses = [
        {line["step"]: line["loss"] for line in read_metrics(path) if "loss" in line}
        for path in (adapted[0], tmp_path / "run")
    ]
    assert losses[0] == losses[1]


def test_adapters_as_directories(model_family, base, adapted, tmp_path, monkeypatch, capsys):
    path = adapted[0]
    printed = command(
        convert, monkeypatch, capsys, "export", f"--model={path}", f"--output={tmp_path}/a"
    )
    assert "cannot be merged" in printed
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == [ADAPTER, "model.json", "tokenizer"]
    expected = load(path).compress(INSTRUCTIONS)
    for model in (load(tmp_path / "a"), load(base, adapter=tmp_path / "a")):
        found = model.compress(INSTRUCTIONS)
        assert found.origin == expected.origin
        jax.tree.map(np.testing.assert_array_equal, found.memory, expected.memory)
    # A base that moved, and one that is another.
    moved = tmp_path / "moved"
    base.rename(moved)
    try:
        with pytest.raises(ValueError, match="cannot load the base of the adapter"):
            load(tmp_path / "a")
        file = f"{tmp_path}/x.gist.safetensors"
        arguments = f"--model={tmp_path}/a", f"--base={moved}", f"--instruction={INSTRUCTIONS[0]}"
        command(compress, monkeypatch, capsys, *arguments, f"--output={file}", "--num_gist_tokens=1")
        assert GistCache.load(file).num_gist_tokens == 1
        command(generate, monkeypatch, capsys, f"--model={moved}", f"--gist={file}", "--input=tea")
    finally:
        moved.rename(base)
    other = tmp_path / "other"
    run = prepare(config_of(model_family, num_gist_tokens=0, condition="pos_control", seed=5), other)
    run.config.num_steps = 1
    train(run)
    with pytest.raises(ValueError, match="trained beside another base"):
        load(other, adapter=tmp_path / "a")
    for wrong, sentence in (
        (dict(path=base, adapter=other), "is no adapter"),
        (dict(path=base, base=other), "is no adapter, so that it has no base"),
        (dict(path=path, adapter=path), "is an adapter itself"),
        (dict(path=path, base=path), "is an adapter, and no base"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load(wrong.pop("path"), **wrong)
    with pytest.raises(ValueError, match="which is an adapter: give its base"):
        prepare(config_of(model_family, **adapter_settings(path)), tmp_path / "no")
    (tmp_path / "a" / ADAPTER).write_bytes(b"nothing")
    assert "cannot read" in mistake(
        generate, monkeypatch, capsys, f"--model={tmp_path}/a", "--instruction=x", "--input=y"
    )


def test_stock_transformers_take_an_adapters_prefix(base, adapted, tmp_path, monkeypatch, capsys):
    """The script of docs/prefixes.md, on the unchanged base, prints what we write."""
    pytest.importorskip("torch", reason="PyTorch is optional: pip install 'gist_jax[torch]'")
    model = load(adapted[0])
    command(convert, monkeypatch, capsys, "export", f"--model={base}", f"--output={tmp_path}/hf")
    model.compress(INSTRUCTIONS[:1]).save(tmp_path / "x.gist.safetensors")
    arguments = f"--model={adapted[0]}", f"--gist={tmp_path}/x.gist.safetensors"
    prefix = tmp_path / "x.prefix.safetensors"
    command(convert, monkeypatch, capsys, "prefix", *arguments, f"--output={prefix}")
    text = (pathlib.Path(__file__).parent.parent / "docs" / "prefixes.md").read_text()
    (tmp_path / "script.py").write_text(re.search(r"```python\n(import sys.*?)```", text, re.S)[1])
    run = [sys.executable, "script.py", "hf", prefix.name, INPUTS[0]]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = model.generate(model.compress(INSTRUCTIONS[:1]), inputs=INPUTS[:1], max_new_tokens=16)
    assert done.stdout.splitlines() == expected


def test_a_base_that_changed_is_refused(model_family, base, adapted, tmp_path):
    """When a run is resumed."""
    described = json.loads((adapted[0] / "model.json").read_text())
    described["adapter"]["fingerprint"] = "0" * 16
    changed = tmp_path / "run"
    changed.mkdir()
    for name in ("config.json", "data.json", "tokenizer", CHECKPOINTS):
        (changed / name).symlink_to(adapted[0] / name)
    (changed / "model.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="changed since the run"):
        prepare(config_of(model_family, **adapter_settings(base)), changed)


def test_labels(base, adapted, tmp_path, monkeypatch, capsys):
    """They are what the base writes, and a source to train on."""
    records = [{"instruction": i, "input": x} for i in INSTRUCTIONS for x in INPUTS] * 3
    source = tmp_path / "train.jsonl"
    source.write_text("\n".join(map(json.dumps, records)))
    arguments = [f"--model={adapted[0]}", f"--source={source}", "--max_new_tokens=8", "--batch_size=5"]
    monkeypatch.setattr(labels, "PART", 5)
    monkeypatch.setattr(distributed, "initialize", lambda: None)  # this process has computed already
    command(label, monkeypatch, capsys, *arguments, f"--output={tmp_path}/greedy")
    labelled = load_data(str(tmp_path / "greedy")).splits["train"]
    instructions, inputs = ([r[field] for r in records] for field in ("instruction", "input"))
    settings = dict(instructions=instructions, inputs=inputs, max_new_tokens=8)
    assert [e["output"] for e in labelled] == load(base).generate(**settings)
    assert "exists already" in mistake(
        label, monkeypatch, capsys, *arguments, f"--output={tmp_path}/greedy"
    )

    # Several of each; whole again after an interruption, and not with other settings.
    sampled = [*arguments, "--temperature=1.5", "--num_outputs=2"]
    command(label, monkeypatch, capsys, *sampled, f"--output={tmp_path}/whole")
    calls, make_part = [], labels._labelled

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make_part(*args)

    with monkeypatch.context() as patch:
        patch.setattr(labels, "_labelled", interrupted)
        mistake(label, patch, capsys, *sampled, f"--output={tmp_path}/again")
    assert not (tmp_path / "again").exists()
    other = [*sampled, f"--output={tmp_path}/again", "--seed=1"]
    assert "seed is 0, not 1" in mistake(label, monkeypatch, capsys, *other)
    with monkeypatch.context() as patch:
        patch.setattr(labels, "_labelled", lambda *args: calls.append(args) or make_part(*args))
        command(label, patch, capsys, *sampled, f"--output={tmp_path}/again")
    assert len(calls) == 2 + 2  # three parts, of which one was there
    whole, again = ((tmp_path / name / "train.jsonl").read_text() for name in ("whole", "again"))
    assert whole == again and whole.count("\n") == 24
    assert not list(tmp_path.glob(".*.parts"))
    # By two processes, one after the other; the first puts all together.
    for index in (1, 0):
        with monkeypatch.context() as patch:
            of_two = types.SimpleNamespace(process_index=lambda i=index: i, process_count=lambda: 2)
            patch.setattr(labels, "jax", of_two)
            patch.setattr(labels, "is_first", lambda i=index: i == 0)
            command(label, patch, capsys, *sampled, f"--output={tmp_path}/shared")
        assert (tmp_path / "shared").exists() == (index == 0)
    assert (tmp_path / "shared" / "train.jsonl").read_text() == whole
    outputs = [json.loads(line)["output"] for line in whole.splitlines()]
    assert any(a != b for a, b in zip(outputs[::2], outputs[1::2], strict=True))
