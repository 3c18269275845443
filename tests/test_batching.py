"""Training batches: streams that resume, examples that are cut, rows that are packed."""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import psutil
import pytest
from launch_scripts import alive, wait_for

from gist_jax.data import instructions
from gist_jax.data.batching import training_batches
from gist_jax.data.prompt_template import PromptTemplate
from gist_jax.data.tokenization import SPECIAL_TOKENS, from_tokenizers


def tokenizer():
    return from_tokenizers(instructions.load_tokenizer(), SPECIAL_TOKENS)


def batches_of(source, num_gist_tokens=1, start=None, pack=False, seed=0, **sizes):
    """A stream of batches, for an encoder-decoder if `start` is its start token."""
    template = PromptTemplate(tokenizer(), num_gist_tokens, start)
    return training_batches(source, template, pack=pack, seed=seed, **{"max_output_length": 16} | sizes)


@pytest.mark.parametrize("start", [None, 0])
@pytest.mark.parametrize("pack", [False, True])
def test_batches_resume_where_they_were(pack, start):
    settings = dict(num_gist_tokens=2, batch_size=4, max_length=64, pack=pack, seed=1, start=start)
    source = instructions.Corpus("train")
    stream = batches_of(source, **settings)
    for _ in range(3):
        batch = next(stream)
    assert {name: x.shape for name, x in batch.items()} == {
        name: (4, 16 if start == 0 and name not in ("tokens", "segment") else 64) for name in batch
    }
    assert ("decoder_tokens" in batch) == (start is not None)
    assert (batch["segment"].max(axis=1) > 1).any() == pack
    state = stream.get_state()
    expected = next(stream)
    again = batches_of(source, **settings)
    again.set_state(state)
    for name, value in next(again).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("start", [None, 0])
@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_long_examples_keep_their_gist_tokens_and_an_output(field, start):
    example = {"instruction": "Say red.", "input": "cow", "output": "red"}
    example[field] = "dog " * 100
    settings = dict(num_gist_tokens=3, batch_size=1, max_length=24, start=start)
    batch = {name: x[0] for name, x in next(batches_of([example], **settings)).items()}
    tokens, targets, weights = (batch[name] for name in ("tokens", "targets", "weights"))
    assert (tokens == tokenizer().gist_id).sum() == 3
    written = tokenizer().decode(targets[weights > 0]).split()
    assert set(written) == {"dog" if field == "output" else "red"}
    if start is None:
        # Right before the first output token stands what asks for it.
        first = int(np.argmax(weights))
        assert tokenizer().decode(tokens[first - 1 : first + 1]) == "output :"
        assert len(written) == (24 + 1 - (first + 1) if field == "output" else 1)
    else:
        ends = tokens[batch["segment"] > 0][-1], targets[weights > 0][-1]
        assert ends == (tokenizer().eos_id,) * 2
        assert len(written) == (15 if field == "output" else 1)
        shifted = [start, *targets[weights > 0][:-1]]
        np.testing.assert_array_equal(batch["decoder_tokens"][weights > 0], shifted)


@pytest.mark.parametrize("start", [None, 0])
def test_packed_rows_hold_the_same_examples(start):
    settings = dict(batch_size=3, max_length=80, max_output_length=40, start=start)
    source = instructions.Corpus("train")
    packed = next(batches_of(source, **settings, pack=True))
    single = batches_of(source, **settings)
    segment_of = "segment" if start is None else "decoder_segment"
    known = {}
    for batch in (next(single) for _ in range(8)):
        for i in range(3):
            tokens = batch["tokens"][i][batch["segment"][i] > 0]
            kept = batch[segment_of][i] > 0
            known[tuple(tokens)] = [tuple(batch[name][i][kept]) for name in ("targets", "weights")]
    assert (packed["segment"].max(axis=1) >= 2).all()
    for row in range(3):
        for number in range(1, packed["segment"][row].max() + 1):
            tokens = tuple(packed["tokens"][row][packed["segment"][row] == number])
            kept = packed[segment_of][row] == number
            found = [tuple(packed[name][row][kept]) for name in ("targets", "weights")]
            assert known[tokens] == found
            if start is None:
                assert found[0][:-1] == tokens[1:]
            else:
                assert tuple(packed["decoder_tokens"][row][kept]) == (start, *found[0][:-1])


@pytest.mark.parametrize("start", [None, 0])
def test_buckets_shorten_batches_of_short_examples(start):
    sizes = dict(batch_size=4, max_length=64, max_output_length=24, start=start)
    source = [instructions.Corpus("train")[i] for i in range(128)]
    stream = batches_of(source, **sizes, buckets=(8, 24, 28), seed=2)
    lengths, padding, seen, states = [], [], [], []
    for _ in range(32):  # two windows, which are the epoch
        states.append(stream.get_state())
        batch = next(stream)
        lengths.append(batch["tokens"].shape[1])
        padding.append((batch["segment"] == 0).mean())
        seen += [
            tuple(row[kept > 0]) for row, kept in zip(batch["tokens"], batch["segment"], strict=True)
        ]
        longest = (batch["segment"] > 0).sum(axis=1).max()
        assert lengths[-1] == min(x for x in (8, 24, 28, 64) if x >= longest)
        if start is not None:
            assert batch["targets"].shape[1] in (8, 24)
    assert {24, 28} <= set(lengths) and lengths != sorted(lengths)
    single = batches_of(source, **sizes)
    whole = [
        tuple(r[k > 0])
        for b in (next(single) for _ in range(32))
        for r, k in zip(b["tokens"], b["segment"], strict=True)
    ]
    assert sorted(seen) == sorted(whole)  # every example once
    assert np.mean(padding) < 0.25  # of rows of 64 it would be 0.6
    again = batches_of(source, **sizes, buckets=(8, 24, 28), seed=2, rows=np.array([1, 3]))
    again.set_state(states[21])  # in the middle of a window, for some of the rows
    np.testing.assert_array_equal(next(again)["tokens"], _nth(source, sizes, 21)["tokens"][[1, 3]])


def _nth(source, sizes, n):
    stream = batches_of(source, **sizes, buckets=(8, 24, 28), seed=2)
    return [next(stream) for _ in range(n + 1)][n]


@pytest.mark.parametrize("pack", [False, True])
def test_every_example_draws_a_number_of_gist_tokens(pack):
    """Anew in every epoch, the same for the same seed, whichever rows a process makes."""
    source = [instructions.Corpus("train")[i] for i in range(8)]
    settings = dict(batch_size=8, max_length=64, pack=pack, gist_token_choices=(1, 2, 5))

    def counts(batch):
        is_gist = batch["tokens"] == tokenizer().gist_id
        return [
            int(is_gist[row][batch["segment"][row] == number].sum())
            for row in range(len(is_gist))
            for number in range(1, batch["segment"][row].max() + 1)
        ]

    stream, again, other = (batches_of(source, **settings, seed=seed) for seed in (0, 0, 1))
    drawn = [counts(next(stream)) for _ in range(4)]
    assert set(sum(drawn, [])) == {1, 2, 5}
    assert drawn[0] != drawn[1]
    assert [counts(next(again)) for _ in range(4)] == drawn
    assert [counts(next(other)) for _ in range(4)] != drawn
    if not pack:
        some = batches_of(source, **settings, rows=np.array([1, 6]))
        assert counts(next(some)) == [drawn[0][1], drawn[0][6]]


@pytest.mark.parametrize(
    "settings", [dict(pack=True, gist_token_choices=(1, 3)), dict(pack=False), dict(buckets=(24,))]
)
def test_worker_processes_make_the_same_batches(settings):
    sizes = dict(batch_size=4, max_length=64, seed=1, **settings)
    source = instructions.Corpus("train")
    ours, theirs = batches_of(source, **sizes), batches_of(source, **sizes, workers=2)
    for _ in range(20):
        batch, expected = next(theirs), next(ours)
        for name, x in batch.items():
            np.testing.assert_array_equal(x, expected[name])
    state = theirs.get_state()
    expected = next(theirs)
    again = batches_of(source, **sizes, workers=2)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["tokens"], expected["tokens"])


def test_workers_end_with_the_process_that_trains():
    """However it ends."""
    script = """
import time
from test_batching import batches_of, instructions
if __name__ == "__main__":
    next(batches_of(instructions.Corpus("train"), batch_size=2, max_length=64, workers=1))
    print("ready", flush=True)
    time.sleep(60)
"""
    tests = pathlib.Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests / 'helpers'}"}
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "script.py"
        file.write_text(script)
        process = subprocess.Popen(
            [sys.executable, str(file)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline().strip() == "ready"
        workers = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert workers
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(alive, workers)))
