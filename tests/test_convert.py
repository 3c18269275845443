"""The convert command: import, export, weight diffs; and what is wrong with checkpoints."""

import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers
import transformers
from commands import command, mistake
from conftest import TESTS
from safetensors.numpy import load_file, save_file

import gist_jax
from gist_jax import convert
from gist_jax.interop import weight_diff
from gist_jax.interop.export import write_tensors
from gist_jax.interop.huggingface import Checkpoint


def tensors_of(directory) -> dict[str, np.ndarray]:
    return {k: v for file in directory.glob("model*.safetensors") for k, v in load_file(file).items()}


@pytest.fixture
def base(tmp_path, model_family):
    """A checkpoint of 103 rows with a tokenizer of 102 entries, the gist token not among them."""
    path = tmp_path / "base"
    shutil.copytree(TESTS / "golden" / model_family, path, ignore=lambda *_: ["cases.npz"])
    names = ["<pad>", "<s>", "</s>", *(f"t{i}" for i in range(99))]
    words = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "<pad>")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(path / "tokenizer.json"))
    return path


def test_convert_is_a_command(monkeypatch, capsys):
    """It runs by itself, not only as a function."""
    with pytest.raises(SystemExit):
        command(convert, monkeypatch, capsys, "--help")
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("import", "export", "recover", "diff", "prefix"))
    python = [sys.executable, "-m", "gist_jax.convert"]
    wrong = subprocess.run([*python, "recover", "--base=x"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: the following arguments are req")
    assert len(wrong.stderr.splitlines()) == 1


def test_import_and_export(base, tmp_path, monkeypatch, capsys):
    command(convert, monkeypatch, capsys, "import", f"--model={base}", f"--output={tmp_path}/run")
    lm = gist_jax.load(tmp_path / "run")
    assert lm.config == Checkpoint(base).config and lm.tokenizer.gist_id == 102
    out = f"--output={tmp_path}/out"
    command(convert, monkeypatch, capsys, "export", f"--model={tmp_path}/run", out)
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    again = gist_jax.load(tmp_path / "out")
    assert again.origin == lm.origin
    assert (again.condition, again.num_gist_tokens) == (lm.condition, lm.num_gist_tokens)
    taken = mistake(convert, monkeypatch, capsys, "export", f"--model={tmp_path}/run", out)
    assert taken.endswith("out exists already: choose another name for the output")


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_export_of_a_trained_model(lm, tmp_path, monkeypatch, capsys):
    """It stays as it was: the same outputs, caches that fit, the gist settings."""
    lm.export(tmp_path / "out")
    again = gist_jax.load(tmp_path / "out")
    assert again.origin == lm.origin and again.num_gist_tokens == lm.num_gist_tokens
    gists = lm.compress(["Say the last word."])
    assert again.generate(gists, inputs=["red"]) == lm.generate(gists, inputs=["red"])
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16"):
        lm.export(tmp_path / "other", dtype="int8")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def write_checkpoint(directory, tensors, shard_bytes=1 << 30):
    directory.mkdir()
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    write_tensors(directory, sizes, tensors.__getitem__, shard_bytes)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))


def random_pair():
    """Tuned and base tensors whose differences round in every way; the base lacks a vocabulary row."""
    rng = np.random.default_rng(0)
    names = {"model.embed_tokens.weight": (40, 8), "model.norm.weight": (8,), "lm_head.weight": (40, 8)}
    tuned, base = {}, {}
    for name, shape in names.items():
        values = rng.normal(size=shape) * 10.0 ** rng.integers(-12, 3, shape)
        before = rng.normal(size=shape) * 10.0 ** rng.integers(-12, 3, shape)
        tuned[name] = np.where(rng.random(shape) < 0.1, 0, values).astype(np.float32)
        base[name] = before.astype(np.float32)[: 39 if len(shape) == 2 else None]
    return tuned, base


@pytest.mark.parametrize("shard_bytes", [1 << 30, 1000])
def test_recover_gives_back_what_diff_was_made_of(shard_bytes, tmp_path, monkeypatch, capsys):
    tuned, base = random_pair()
    write_checkpoint(tmp_path / "tuned", tuned, shard_bytes)
    write_checkpoint(tmp_path / "base", base, shard_bytes)
    settings = f"--base={tmp_path}/base", f"--output={tmp_path}/diff"
    command(convert, monkeypatch, capsys, "diff", f"--tuned={tmp_path}/tuned", *settings)
    settings = f"--base={tmp_path}/base", f"--diff={tmp_path}/diff", f"--output={tmp_path}/out"
    command(convert, monkeypatch, capsys, "recover", *settings)
    recovered, diff = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "diff")
    assert any((base[n] + diff[n][: len(base[n])] != tuned[n][: len(base[n])]).any() for n in tuned)
    for name, tensor in tuned.items():
        assert recovered[name].tobytes() == tensor.tobytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "llama"}


def test_published_sums(tmp_path, monkeypatch):
    """A diff of a known name must come out with the published sum, or nothing is written."""
    tuned, base = random_pair()
    tuned, base = ({n: np.ones_like(t) for n, t in tensors.items()} for tensors in (tuned, base))
    write_checkpoint(tmp_path / "tuned", tuned)
    write_checkpoint(tmp_path / "base", base)
    weight_diff.make_diff(tmp_path / "tuned", tmp_path / "base", tmp_path / "llama-7b-gist-1")
    fields = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
    (tmp_path / "llama-7b-gist-1" / "config.json").write_text(json.dumps(fields))
    frequencies = 3 * sum(10_000.0 ** (-i / 8) for i in range(0, 8, 2))
    total = 40 * 8 * 2 + 8 + frequencies
    monkeypatch.setitem(weight_diff.PUBLISHED_SUMS, "llama-7b-gist-1", total + 0.02)
    arguments = tmp_path / "base", tmp_path / "llama-7b-gist-1", tmp_path / "out", "llama-7b-gist-1"
    with pytest.raises(ValueError, match="weights of llama-7b-gist-1 add up to .*, not "):
        weight_diff.recover(*arguments)
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(weight_diff.PUBLISHED_SUMS, "llama-7b-gist-1", total + 0.005)
    weight_diff.recover(*arguments)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_constants_in_old_checkpoints(tmp_path):
    """A diff of them is zero; a base of today has none."""
    tuned, base = random_pair()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    constant = {name: np.float32([1, 0.5])}
    write_checkpoint(tmp_path / "tuned", tuned | constant)
    write_checkpoint(tmp_path / "old", base | constant)
    write_checkpoint(tmp_path / "new", base)
    weight_diff.make_diff(tmp_path / "tuned", tmp_path / "old", tmp_path / "diff")
    assert not tensors_of(tmp_path / "diff")[name].any()
    for kind, expected in (("old", tuned | constant), ("new", tuned)):
        weight_diff.recover(tmp_path / kind, tmp_path / "diff", tmp_path / f"from {kind}", "x")
        recovered = tensors_of(tmp_path / f"from {kind}")
        assert recovered.keys() == expected.keys()
        for tensor in expected:
            np.testing.assert_array_equal(recovered[tensor], expected[tensor])


def test_diffs_that_do_not_fit(tmp_path, monkeypatch, capsys):
    tuned, base = random_pair()
    write_checkpoint(tmp_path / "tuned", tuned)

    def refused(name, tensors):
        write_checkpoint(tmp_path / name, tensors)
        settings = f"--base={tmp_path}/{name}", f"--diff={tmp_path}/tuned", f"--output={tmp_path}/out"
        text = mistake(convert, monkeypatch, capsys, "recover", *settings)
        assert not list(tmp_path.glob("*out*"))
        return text

    less = {n: t for n, t in base.items() if n != "lm_head.weight"}
    assert "has tensor lm_head.weight, which the base has not" in refused("less", less)
    more = base | {"model.x.weight": base["model.norm.weight"]}
    assert "has tensor model.x.weight, which the other has not" in refused("more", more)
    other = base | {"model.norm.weight": np.ones(7, np.float32)}
    assert "has shape (8,), but that of the base (7,)" in refused("other", other)


def damage(path: pathlib.Path, how: str) -> str:
    """Damages a checkpoint; what its sentence says."""
    weights, config = path / "model.safetensors", path / "config.json"
    fields, tensors = json.loads(config.read_text()), load_file(weights)
    name = next(iter(tensors))
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
        return "cannot read "
    if how == "no config":
        config.unlink()
        return "config.json"
    if how == "architecture":
        config.write_text(json.dumps(fields | {"model_type": "gpt2"}))
        return "model_type 'gpt2' is not supported"
    if how == "quantized":
        config.write_text(json.dumps(fields | {"quantization_config": {"bits": 4}}))
        return "is a quantized checkpoint, which is not supported"
    if how == "pickle":
        pytest.importorskip("torch")
        weights.unlink()
        (path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": pathlib.Path("x")}))
        return "as plain tensors"
    if how == "missing shard":
        weight_map = dict.fromkeys(tensors, "model.safetensors") | {name: "model-2.safetensors"}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return "names model-2.safetensors, which is missing"
    if how == "twice":
        save_file({name: tensors[name]}, path / "model-2.safetensors")
        weight_map = dict.fromkeys(tensors, "model.safetensors") | {name: "model-2.safetensors"}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return f"has tensor {name}, which"
    if how == "missing tensor":
        save_file({k: v for k, v in tensors.items() if k != name}, weights)
        return f"there is no tensor {name}"
    if how == "left over":
        save_file(tensors | {"x.weight": np.ones(3, np.float32)}, weights)
        return "has tensors of no known use: x.weight"
    if how == "shape":
        save_file(tensors | {name: tensors[name][:-1]}, weights)
        return f"tensor {name} of "
    if how == "integers":
        save_file(tensors | {name: tensors[name].astype(np.int8)}, weights)
        return "is of type I8, not floating-point"
    tensors[name].reshape(-1)[0] = np.nan
    save_file(tensors, weights)
    return "has values that are not finite numbers"


DAMAGES = ["truncated", "no config", "architecture", "quantized", "pickle", "missing shard", "twice"]
DAMAGES += ["missing tensor", "left over", "shape", "integers", "nan"]


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_checkpoints(how, base, tmp_path, monkeypatch, capsys):
    expected = damage(base, how)
    arguments = "import", f"--model={base}", f"--output={tmp_path}/out"
    text = mistake(convert, monkeypatch, capsys, *arguments)
    assert expected in text and text.startswith("error: ")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_bin_files(base, tmp_path):
    """PyTorch's own files, in one and in several with an index."""
    torch = pytest.importorskip("torch")
    tensors = load_file(base / "model.safetensors")
    names = sorted(tensors)
    (base / "model.safetensors").unlink()
    expected = None
    for count in (1, 2):
        weight_map = {}
        for i in range(count):
            file = f"pytorch_model-{i}.bin" if count > 1 else "pytorch_model.bin"
            part = names[i::count]
            torch.save({n: torch.from_numpy(tensors[n]).bfloat16() for n in part}, base / file)
            weight_map |= dict.fromkeys(part, file)
        if count > 1:
            (base / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        params = Checkpoint(base).load("bfloat16")
        expected = params if expected is None else expected
        for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert jax.tree.leaves(params)[0].dtype == "bfloat16"


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_a_tokenizer_is_exported_as_it_was(base, tmp_path):
    lm = gist_jax.load(base)
    lm.export(tmp_path / "out")
    again = gist_jax.load(tmp_path / "out").tokenizer
    assert again.fingerprint() == lm.tokenizer.fingerprint()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.convert_tokens_to_ids("<GIST>") == 102 and theirs.eos_token == "</s>"
    assert theirs("t1 t2 <GIST>").input_ids == [*again.encode("t1 t2"), 102]
