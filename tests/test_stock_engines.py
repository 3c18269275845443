"""Gist caches in stock transformers, with PyTorch, and in MLX-LM, where it is: token for token."""

import dataclasses
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from random_models import DECODERS, random_decoder, random_t5, torch

from gist_jax.data.tokenization import train_bpe
from gist_jax.inference.language_model import LanguageModel
from gist_jax.interop.huggingface import Checkpoint
from gist_jax.interop.prefix import Prefix

NEAR = 1e-4  # of logits: which of two tokens comes then is chance
WORDS = ["tea", "cup", "lamp", "river", "stone", "green", "seven", "walk", "count", "first", "two"]
GREEDY = dict(max_new_tokens=24, do_sample=False)


def random_texts(rng, count, least, most):
    return [" ".join(rng.choice(WORDS, rng.integers(least, most))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([*WORDS, *["Instruction: Input: \nOutput:"] * 9], 420)


def language_model(model, k, tokenizer, folder):
    """Ours with the weights of a model of transformers, which writes on after an end of sequence."""
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    checkpoint = Checkpoint(folder)
    settings = dict(num_gist_tokens=k, condition="gist")
    return LanguageModel.from_params(
        checkpoint.load("float32"), checkpoint.config, tokenizer, **settings
    )


def whole_prompt(model, head, tail, k, steps=24):
    """Greedy tokens after a whole prompt under an explicit gist mask, and the margin of each.

    What is written is never read as a gist token: the mask goes by the prompt's length.
    """
    ids, tokens, margins = [*head, *tail], [], []
    for _ in range(steps):
        length = len(ids) + len(tokens)
        mask = np.tril(np.ones((length, length), bool))
        mask[len(head) :, : len(head) - k] = False
        bias = torch.from_numpy(mask)[None, None].float().sub(1).mul(1e9)
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *tokens]]), attention_mask=bias).logits[0, -1]
        best = torch.topk(logits, 2)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return tokens, margins


def assert_equal(written, expected):
    """All tokens of every row, but for those from a near tie on, of which pytest warns."""
    for row, (tokens, margins) in zip(written, expected, strict=True):
        for token, wanted, margin in zip(row, tokens, margins, strict=True):
            if token != wanted and margin < NEAR:
                warnings.warn(f"a near tie: margin {margin:.1e}", stacklevel=2)
                break
            assert token == wanted


def written(model, prefix: Prefix, rows, pad_id, **options):
    """What stock `generate` writes."""
    batch = {**prefix.inputs(rows, pad_id), "past_key_values": prefix.to_transformers(model), **options}
    output = model.generate(**batch, pad_token_id=pad_id, **GREEDY)
    return output[:, -24:].tolist()


def prompts(ours, count=6):
    rng = np.random.default_rng(0)
    instructions, inputs = random_texts(rng, count, 3, 9), random_texts(rng, count, 1, 6)
    heads = [ours.template.instruction_ids(text) for text in instructions]
    return instructions, inputs, heads, [ours.template.input_ids(text) for text in inputs]


@pytest.mark.parametrize(("name", "k"), [("llama", 1), *((name, 4) for name in DECODERS)])
def test_stock_generate_goes_on_after_a_prefix(name, k, tokenizer, tmp_path):
    model = random_decoder(name, tokenizer.vocab_size)
    ours = language_model(model, k, tokenizer, tmp_path)
    instructions, _, heads, rows = prompts(ours)
    assert len({len(head) for head in heads}) > 2 and len({len(row) for row in rows}) > 2
    expected = [whole_prompt(model, *pair, k) for pair in zip(heads, rows, strict=True)]
    prefix = ours.prefix(ours.compress(instructions))
    tokens = written(model, prefix, rows, tokenizer.pad_id)
    assert_equal(tokens, expected)
    # One for many inputs.
    same = whole_prompt(model, heads[0], rows[1], k), whole_prompt(model, heads[0], rows[2], k)
    assert_equal(written(model, prefix[[0, 0]], rows[1:3], tokenizer.pad_id), same)


def share(tokens, expected):
    """How many tokens are the same."""
    return np.mean(np.array(tokens) == np.array(expected))


def test_pitfalls(tokenizer, tmp_path):
    """Each gives other tokens; what the helpers make does not."""
    model, k, pad = random_decoder("llama", tokenizer.vocab_size), 4, tokenizer.pad_id
    ours = language_model(model, k, tokenizer, tmp_path)
    instructions, _, heads, rows = prompts(ours)
    gists = ours.compress(instructions)
    prefix = ours.prefix(gists)
    right = written(model, prefix, rows, pad)
    assert_equal(right, [whole_prompt(model, *pair, k) for pair in zip(heads, rows, strict=True)])
    batch = prefix.inputs(rows, pad)
    mask = batch["attention_mask"]

    unrotated = dataclasses.replace(prefix, keys=gists.memory.cache.keys)
    assert share(written(model, unrotated, rows, pad), right) < 0.7
    left = torch.cat([mask[:, k:], mask[:, :k]], dim=1).sort(dim=1).values  # zeros first
    assert share(written(model, prefix, rows, pad, attention_mask=left), right) < 0.7
    everything = torch.ones_like(mask)
    assert share(written(model, prefix, rows, pad, attention_mask=everything), right) < 0.9
    # A cache is written into.
    used = prefix.to_transformers(model)
    assert written(model, prefix, rows, pad, past_key_values=used) == right
    assert used.get_seq_length() > k
    assert written(model, prefix, rows, pad) == right
    # Embeddings need the placeholders too.
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    assert written(model, prefix, rows, pad, inputs_embeds=embeddings) == right
    # Each beam has a row of the cache; rows do not depend on those beside them.
    beams = [
        written(
            model,
            some,
            of_rows,
            pad,
            num_beams=2,
            past_key_values=some.to_transformers(model, num_beams=2),
        )
        for some, of_rows in ((prefix, rows), (prefix[3], rows[3:4]))
    ]
    assert beams[0][3] == beams[1][0]
    with pytest.raises(ValueError, match="2 inputs for 6 rows"):
        prefix.inputs(rows[:2], pad)
    with pytest.raises(ValueError, match="has no tokens"):
        prefix.inputs([[]] * 6, pad)


def test_rows_of_different_k(tokenizer, tmp_path):
    """The gist tokens of a row with fewer stand in its last slots."""
    model, pad = random_decoder("llama3", tokenizer.vocab_size), tokenizer.pad_id
    one, four = (language_model(model, k, tokenizer, tmp_path) for k in (1, 4))
    instructions, _, _, rows = prompts(one, 2)
    few, many = one.compress(instructions[:1]), four.compress(instructions[1:])

    def join(a, b):  # padded at the end, as a gist cache is
        axis = {4: 2, 2: 1}.get(a.ndim)
        if axis is None:
            return jnp.concatenate([a, b])
        room = [(0, 3) if i == axis else (0, 0) for i in range(a.ndim)]
        return jnp.concatenate([jnp.pad(a, room), b])

    both = jax.tree.map(join, few.bare("float32"), many.bare("float32"))
    both = dataclasses.replace(both, origin=few.origin, instructions=tuple(instructions))
    tokens = written(model, one.prefix(both), rows, pad)
    assert tokens[0] == written(model, one.prefix(few), rows[:1], pad)[0]
    assert tokens[1] == written(model, four.prefix(many), rows[1:], pad)[0]


@pytest.mark.parametrize("k", [1, 4])
def test_stock_t5_goes_on_after_our_encoder(k, tokenizer, tmp_path):
    model = random_t5("v1.1", True, tokenizer.vocab_size)
    ours = language_model(model, k, tokenizer, tmp_path)
    instructions, inputs, _, rows = prompts(ours)
    gists = ours.compress(instructions)
    states, mask = ours.encode_inputs(gists, inputs)
    outputs = model.generate(
        encoder_outputs=transformers.modeling_outputs.BaseModelOutput(torch.from_numpy(states)),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
    )
    expected = ours.generate_ids(rows, gists, 12)
    theirs = outputs[:, 1:].numpy()
    np.testing.assert_array_equal(theirs, expected[:, : theirs.shape[1]])
    one, of_one = ours.encode_inputs(gists[0], inputs[:2])
    assert one.shape[0] == of_one.shape[0] == 2


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2"])
def test_mlx_goes_on_after_a_prefix(name, tokenizer, tmp_path):
    pytest.importorskip("mlx_lm", reason="MLX-LM is optional: pip install 'gist_jax[mlx]'")
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import load_prompt_cache
    from mlx_lm.utils import load_model

    ours = language_model(random_decoder(name, tokenizer.vocab_size), 4, tokenizer, tmp_path / "theirs")
    ours.export(tmp_path / "ours")
    model, _ = load_model(pathlib.Path(tmp_path / "ours"))
    instructions, _, _, rows = prompts(ours)
    gists = ours.compress(instructions)
    expected = ours.generate_ids(rows, gists, 24)
    for i, row in enumerate(rows):
        file = tmp_path / f"{i}.safetensors"
        ours.prefix(gists[i]).save_mlx(file)
        steps = generate_step(
            mx.array(row), model, prompt_cache=load_prompt_cache(str(file)), max_tokens=24
        )
        tokens = [int(token) for token, _ in steps]
        end = list(expected[i]).index(tokenizer.eos_id) + 1 if tokenizer.eos_id in expected[i] else 24
        assert tokens[:end] == list(expected[i][:end])
