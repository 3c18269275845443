"""What a gist loses against the whole prompt, token by token."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from commands import INPUTS, INSTRUCTIONS, command, mistake
from fidelity_auc import area, measure
from scipy.special import logsumexp
from steps import random_adapter
from tiny import TINY

import gist_jax
from gist_jax import compress
from gist_jax.data import instructions
from gist_jax.data.tokenization import SPECIAL_TOKENS, from_tokenizers
from gist_jax.inference.fidelity import compare
from gist_jax.inference.language_model import LanguageModel
from gist_jax.models import registry
from gist_jax.models.adapter import Adapter, AdapterConfig
from gist_jax.training.step import StepConfig, logits

EXAMPLES = pathlib.Path(__file__).parent / "examples"
SETTINGS = dict(max_new_tokens=6)
llama_alone = pytest.mark.parametrize("model_family", ["llama"], indirect=True)


@pytest.fixture(scope="module")
def random_model(model_family):
    """A model that writes what its large random weights say, and its stacked parameters."""
    tokenizer = from_tokenizers(instructions.load_tokenizer(), SPECIAL_TOKENS)
    config = dataclasses.replace(TINY[model_family], vocab_size=tokenizer.vocab_size)
    params = jax.jit(registry.init, static_argnums=0)(config, jax.random.key(7))
    return LanguageModel.from_params(params, config, tokenizer, num_gist_tokens=2), params


def test_a_model_without_a_mask_is_its_own_reference(random_model):
    control = dataclasses.replace(random_model[0], condition="pos_control")
    for reference in (control, None):
        found = control.fidelity(INSTRUCTIONS, INPUTS, reference=reference, **SETTINGS)
        assert [fidelity.instruction for fidelity in found] == INSTRUCTIONS
        for fidelity in found:
            assert np.abs(fidelity.outputs[0].kl).max() <= 1e-6 and fidelity.agreement == 1
    written = control.generate(instructions=INSTRUCTIONS, inputs=INPUTS, **SETTINGS)
    assert [fidelity.outputs[0].text for fidelity in found] == written


def test_divergence_from_one_forward_pass(random_model):
    """By hand, from the logits that training computes of the prompt and the output together."""
    lm, params = random_model
    [fidelity] = lm.fidelity(INSTRUCTIONS[0], INPUTS[:1], **SETTINGS)
    [output] = fidelity.outputs
    control = dataclasses.replace(lm, condition="pos_control")
    prompt = lm.template.instruction_ids(INSTRUCTIONS[0]) + lm.template.input_ids(INPUTS[0])
    written = control.generate_ids([prompt], None, SETTINGS["max_new_tokens"])[0][: len(output.kl)]
    assert lm.tokenizer.gist_id not in written  # which fidelity does not let it write
    ids = {"tokens": list(prompt)}
    if lm.config.is_encoder_decoder:
        ids["decoder_tokens"] = [lm.config.decoder_start_token, *written[:-1]]
    else:
        ids["tokens"] += list(written[:-1])
    batch = {name: np.array([x], np.int32) for name, x in ids.items()}
    for name in list(batch):
        batch[name.replace("tokens", "segment")] = np.ones_like(batch[name])

    def log_probabilities(condition):
        config = StepConfig(condition, lm.tokenizer.gist_id)
        x = np.asarray(jax.jit(logits, static_argnums=(1, 2))(params, lm.config, config, batch))
        x = np.delete(x[0, -len(written) :], lm.tokenizer.gist_id, axis=1)
        return x - logsumexp(x, axis=1, keepdims=True)

    p, q = log_probabilities("pos_control"), log_probabilities("gist")
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    assert kl.max() > 0.1
    np.testing.assert_allclose(output.kl, kl, rtol=1e-3, atol=1e-5)
    assert fidelity.kl == pytest.approx(kl.mean(), rel=1e-3)
    parted = p.argmax(axis=1) != q.argmax(axis=1)
    assert 0 < parted.sum() == len(output.partings)
    assert fidelity.agreement == pytest.approx(1 - parted.mean())
    first = output.partings[0]
    place = int(parted.argmax())
    assert first.written == lm.tokenizer.decode(written[:place])
    assert first.kl == pytest.approx(kl[place], rel=1e-3) and first.reference != first.gist
    assert f"from the gist {first.gist!r}" in str(fidelity)


@llama_alone
def test_of_an_adapter_the_base_is_the_reference(random_model, model_family):
    """It reads prompts in which there are no gist tokens."""
    base, _ = random_model
    config = AdapterConfig(2)
    lm = base.with_adapter(Adapter(random_adapter(base.config, config), config))
    plain = dataclasses.replace(base, num_gist_tokens=0, condition="pos_control")
    found = lm.fidelity(INSTRUCTIONS, INPUTS, **SETTINGS)
    given = lm.fidelity(INSTRUCTIONS, INPUTS, reference=plain, **SETTINGS)
    for a, b in zip(found, given, strict=True):
        np.testing.assert_array_equal(a.outputs[0].kl, b.outputs[0].kl)
    assert max(fidelity.kl for fidelity in found) > 0.1
    written = plain.generate(instructions=INSTRUCTIONS, inputs=INPUTS, **SETTINGS)
    assert [fidelity.outputs[0].text for fidelity in found] == written


@llama_alone
def test_every_instruction_once(random_model):
    lm, _ = random_model
    pairs = [*INSTRUCTIONS, INSTRUCTIONS[0]], [*INPUTS, ""]
    first, second = lm.fidelity(*pairs, **SETTINGS)
    assert [output.input for output in first.outputs] == [INPUTS[0], ""]
    assert [output.input for output in second.outputs] == INPUTS[1:]
    compared = compare(lm, *pairs, **SETTINGS)
    np.testing.assert_allclose(compared[2].kl, first.outputs[1].kl, atol=1e-5)
    [together] = lm.fidelity(INSTRUCTIONS[0], [INPUTS[0], ""], **SETTINGS)
    assert together.kl == pytest.approx(first.kl, rel=1e-4)
    with pytest.raises(ValueError, match="there are 2 instructions for 3 inputs"):
        lm.fidelity(INSTRUCTIONS, ["a", "b", "c"])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        lm.fidelity(INSTRUCTIONS, INPUTS, max_new_tokens=0)
    tokenizer = dataclasses.replace(lm.tokenizer, bos_id=5)
    with pytest.raises(ValueError, match="the reference has another tokenizer"):
        lm.fidelity(INSTRUCTIONS, INPUTS, reference=dataclasses.replace(lm, tokenizer=tokenizer))
    if lm.config.max_positions == 512:
        with pytest.raises(ValueError, match="has only 512 positions"):
            lm.fidelity(INSTRUCTIONS, INPUTS, max_new_tokens=500)


def test_command(tmp_path, monkeypatch, capsys):
    model = f"--model={EXAMPLES / 'llama' / 'workdir'}"
    spoken = [f"--instruction={text}" for text in INSTRUCTIONS]
    arguments = model, *spoken, f"--output={tmp_path / 'x.gist.safetensors'}"
    printed = command(compress, monkeypatch, capsys, *arguments, "--fidelity", "--input=red", "--input=")
    lines = [line for line in printed.splitlines() if line.startswith("KL ")]
    assert [line.partition(" %: ")[2] for line in lines] == [repr(text) for text in INSTRUCTIONS]
    lm = gist_jax.load(EXAMPLES / "llama" / "workdir")
    assert lines[0] == str(lm.fidelity(INSTRUCTIONS[0], ["red", ""])[0]).splitlines()[0]
    assert (tmp_path / "x.gist.safetensors").exists()
    alone = mistake(compress, monkeypatch, capsys, *arguments, "--input=red")
    assert "--input and --reference go with --fidelity" in alone
    both = mistake(compress, monkeypatch, capsys, *arguments, "--fidelity", "--after=x")
    assert "leave --after out" in both


def test_area_under_the_curve():
    """1 where every wrong output diverges more than every right one; a half by chance."""
    wrong = np.array([True, False, True, False])
    assert area(np.array([0.4, 0.1, 0.3, 0.2]), wrong) == 1
    assert area(np.array([0.1, 0.4, 0.2, 0.3]), wrong) == 0
    assert area(np.array([0.1, 0.2, 0.4, 0.3]), wrong) == 0.5
    assert area(np.ones(4), wrong) == 0.5


@pytest.mark.slow
def test_fidelity_tells_wrong_outputs_from_right_ones(demo):
    """Of unseen and human instructions of the embedded corpus, without knowing what is right."""
    found = measure(demo[0], ("pos_control",))
    print(found)
    both = found["pos_control/both"]
    assert both.value >= 0.7 and both.low > 0.5
