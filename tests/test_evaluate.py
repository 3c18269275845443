"""Metrics by hand, and the evaluate command on models of all kinds."""

import json
import pathlib
import shutil

import pytest
from commands import command

from gist_jax import evaluate
from gist_jax.evaluation.rouge import recovery, score

EXAMPLES = pathlib.Path(__file__).parent / "examples"


def record(prediction, reference):
    return {"instruction": "", "input": "", "prediction": prediction, "reference": reference}


def test_metrics_by_hand():
    """In percent: F-measures of one-word, two-word and longest common sequences, and exact match."""
    assert score([record("red tea", "red tea")]) == {
        "rouge1": 100,
        "rouge2": 100,
        "rougeL": 100,
        "exact_match": 100,
    }
    # Of 4 and 3 words 2 are common, in order, of 3 and 2 pairs none.
    found = score([record("red cow tea dog", "red tea cup")])
    assert found == pytest.approx({"rouge1": 400 / 7, "rouge2": 0, "rougeL": 400 / 7, "exact_match": 0})
    # All three words are common, in another order: 1 of 2 pairs, and 2 in order.
    found = score([record("tea cup red", "red tea cup")])
    assert found == pytest.approx({"rouge1": 100, "rouge2": 50, "rougeL": 200 / 3, "exact_match": 0})
    # Stemmed; white space around a text and letter case do not count for ROUGE, case for a match.
    found = score([record(" words\n", "word"), record("word ", "word"), record("Word", "word")])
    assert found == pytest.approx({"rouge1": 100, "rouge2": 0, "rougeL": 100, "exact_match": 100 / 3})
    mean = score([record("red tea", "red tea"), record("cow", "red tea")])
    assert mean["rougeL"] == pytest.approx(50) and mean["exact_match"] == pytest.approx(50)


def test_recovery_by_hand():
    assert recovery(gist=30, pos_control=40, neg_control=20) == 50
    assert recovery(gist=40, pos_control=40, neg_control=20) == 100
    assert recovery(1, 2, 2) != recovery(1, 2, 2)  # NaN: there is no gap


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_config_of_a_checkpoint_is_none_of_a_run(dtype, tmp_path, monkeypatch, capsys):
    """Whatever dtype it was saved in, it is evaluated in float32, as `generate` computes."""
    shutil.copytree(EXAMPLES / "llama" / "export", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": dtype, "evaluation": {}}))
    used = []
    monkeypatch.setattr(evaluate, "predict", lambda lm, *_, **__: used.append(lm) or [record("a", "a")])
    command(evaluate, monkeypatch, capsys, f"--model={tmp_path / 'model'}", "--num_examples=1")
    assert [lm.dtype for lm in used] == ["float32"]
