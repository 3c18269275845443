"""Scores of files of predictions: equal to rouge-score's, with intervals, alone and between files."""

import csv
import random

import numpy as np
import pytest
from commands import command, mistake
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from gist_jax import evaluate
from gist_jax.errors import UserError
from gist_jax.evaluation.intervals import means, recovered
from gist_jax.evaluation.predictions import pair, read_predictions
from gist_jax.evaluation.rouge import ALL_METRICS, rouge, score_rows
from gist_jax.evaluation.scores import scored, table

WORDS = [
    "walking",
    "walks",
    "tea",
    "the",
    "a1",
    "É",
    "cups",
    "cup",
    "-",
    "in",
    "in",
    "\n",
    "\n\n",
    "Tea.",
]


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def made_up(count, seed, words=12):
    """Records whose predictions have something to do with their references."""
    rng = random.Random(seed)
    records = []
    for i in range(count):
        reference = rng.choices(WORDS, k=rng.randint(1, words))
        kept = [word for word in reference if rng.random() < 0.7]
        texts = " ".join(reference), " ".join([*kept, *rng.choices(WORDS, k=rng.randint(0, 4))])
        names = "instruction", "input", "reference", "prediction"
        records.append(dict(zip(names, (f"Do {i}.", "x", *texts), strict=True)))
    return records


def plain_means(records):
    """What rouge-score says, and what are equal texts."""
    scorer = rouge_scorer.RougeScorer(ALL_METRICS[:-1], use_stemmer=True)
    found = [scorer.score(r["reference"], r["prediction"]) for r in records]
    values = [100 * np.mean([f[name].fmeasure for f in found]) for name in ALL_METRICS[:-1]]
    return [*values, 100 * np.mean([r["reference"].strip() == r["prediction"].strip() for r in records])]


@given(*2 * [st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)])
def test_rouge_equals_rouge_score(reference, prediction):
    """In every text, and whichever of several longest subsequences is taken for ROUGE-Lsum."""
    theirs = rouge_scorer.RougeScorer(ALL_METRICS[:-1], use_stemmer=True).score(reference, prediction)
    assert rouge(reference, prediction) == pytest.approx(
        [x.fmeasure for x in theirs.values()], abs=1e-12
    )


def test_scores_of_a_file_are_plain_means(tmp_path, monkeypatch, capsys):
    records = made_up(60, seed=1, words=40)
    path = write(tmp_path / "a.csv", records)
    rows = table(*scored([("a", read_predictions(path))]))
    values = {row["metric"]: row["value"] for row in rows}
    assert [values[name] for name in ALL_METRICS] == pytest.approx(plain_means(records), abs=1e-6)
    assert values["words"] == np.mean([len(r["prediction"].split()) for r in records])
    printed = command(evaluate, monkeypatch, capsys, f"--predictions={path}").splitlines()
    assert printed[0] == "60 rows" and len(printed) == 2 + 5 + 2
    for line, row in zip(printed[2:], rows, strict=True):
        interval = f"{row['value_low']:.2f} to {row['value_high']:.2f}"
        assert line.split(maxsplit=2) == [row["metric"], f"{row['value']:.2f}", interval]


def test_published_columns(tmp_path):
    """x is the whole prompt, and of a decoder-only model what comes after, with sentences on lines."""
    rows = [
        {
            "x": "Instruction: Say it. Twice. <GIST> <GIST>  Input: a\nb\nOutput: A b. C d.",
            "y_pred": "A b.",
            "y_true": "A b.\nC d.",
        },
        {"x": "Instruction: Be brief. <GIST><GIST>  Output: ok", "y_pred": "", "y_true": "ok"},
        {"x": "Instruction: Read \nOutput: ⁇ <GIST> Input: Output: no", "y_pred": "b", "y_true": "c"},
        {"x": "Instruction: Too long for any", "y_pred": "b", "y_true": "c"},
    ]
    records = read_predictions(write(tmp_path / "a.csv", rows))
    assert [(r["instruction"], r["input"], r["k"]) for r in records] == [
        ("Say it. Twice.", "a\nb", "2"),
        ("Be brief.", "", "2"),
        ("Read \nOutput:", "Output: no", "1"),
        ("Too long for any", "", "0"),
    ]
    assert [(r["reference"], r["prediction"]) for r in records] == [
        (row["y_true"], row["y_pred"]) for row in rows
    ]
    ours = [{"reference": r["reference"], "prediction": r["prediction"]} for r in records]
    same = read_predictions(write(tmp_path / "b.csv", ours))
    np.testing.assert_array_equal(score_rows(same), score_rows(records))


def test_rows_pair_in_any_order():
    """Equal ones in their own order, those whose inputs were cut with what they are cut of."""
    records = made_up(30, seed=2)
    records[7] = {**records[3], "prediction": "another"}
    long = " ".join(map(str, range(50)))
    records[9] |= {"input": long, "reference": "yes"}
    order = random.Random(3).sample(range(30), 30)
    others = [{**records[i], "input": records[i]["input"] + " \n", "k": str(i)} for i in order]
    others[order.index(9)]["input"] = long[:-10]
    back = pair(records, others, ("a", "b"))
    first, last = sorted((order.index(3), order.index(7)))
    expected = {3: str(order[first]), 7: str(order[last])}
    assert [r["k"] for r in back] == [expected.get(i, str(i)) for i in range(30)]


def test_rows_that_do_not_pair_are_named(tmp_path, monkeypatch, capsys):
    records = made_up(6, seed=4)
    paths = [write(tmp_path / "a.csv", records), write(tmp_path / "b.csv", records[:2] + records[3:])]
    said = mistake(evaluate, monkeypatch, capsys, f"--predictions={paths[0]}", f"--against={paths[1]}")
    assert (
        said
        == f"error: {paths[0]} and {paths[1]} do not pair: no partner for row 3 ('Do 2.') of {paths[0]}"
    )
    changed = [*records[:5], {**records[5], "instruction": "Do other."}]
    with pytest.raises(
        UserError, match=r"row 6 \('Do 5.'\) of a; no partner for row 6 .'Do other.'. of b"
    ):
        pair(records, changed, ("a", "b"))
    cut = [{**r, "input": "", "reference": "other"} for r in records]  # of other references: no cut
    with pytest.raises(UserError, match=r"row 1 .*, 3 \('Do 2.'\), 3 more of a; no partner for row 1"):
        pair(records, cut, ("a", "b"))
    bare = [{**r, "instruction": "", "input": ""} for r in records]
    with pytest.raises(UserError, match="b has no column instruction or input"):
        pair(records, bare, ("a", "b"))


def test_mistakes_in_files(tmp_path, monkeypatch, capsys):
    def said(text, *more):
        (tmp_path / "a.csv").write_text(text)
        return mistake(evaluate, monkeypatch, capsys, f"--predictions={tmp_path / 'a.csv'}", *more)

    columns = "must have rows with the columns reference and prediction, or x, y_pred and y_true"
    assert columns in said("")
    assert columns in said("reference,prediction\n")
    assert columns in said("x,y_pred\na,b\n")
    assert "row 2 of" in said("reference,prediction\na,b\na\n")
    assert "has not as many cells" in said("reference,prediction\na,b,c\n")
    assert "needs both" in said("reference,prediction\na,b\n", "--neg_control=b.csv")
    assert "cannot read" in said("reference,prediction\na,b\n", "--against=/nowhere.csv")


def test_intervals():
    """Those of a mean are as wide as the normal distribution has them, and cover it as often."""
    rng = np.random.default_rng(5)
    values = rng.normal([0, 10], [1, 3], (400, 2))
    for found, column in zip(means(values), values.T, strict=True):
        assert found.value == pytest.approx(column.mean())
        half = 1.96 * column.std() / 20
        assert [found.low, found.high] == pytest.approx(
            [found.value - half, found.value + half], abs=0.06 * half
        )
    assert means(np.full((5, 1), 3.0)) == [(3, 3, 3)]
    assert means(values) == means(values)
    hits = [x.low <= 0 <= x.high for x in means(rng.normal(size=(50, 300)))]
    assert 0.9 <= np.mean(hits) <= 0.98


def test_differences_are_paired_and_recovery_has_an_interval(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(6)
    hard = rng.normal(size=200)  # what all three runs share, and more than what tells them apart
    noise = 0.1 * rng.normal(size=(3, 200))
    gist, pos, neg = 50 + 20 * hard + noise + np.array([[6], [8], [0]])
    found = recovered(gist, pos, neg)
    assert found.value == pytest.approx(75, abs=1)
    assert found.low < found.value < found.high and found.high - found.low < 1
    assert means((gist - pos)[:, None])[0].high < -1.9
    wide = recovered(gist, neg + noise[1], neg)  # between controls that are all the same
    assert (wide.low, wide.high) == (-np.inf, np.inf)

    runs = {name: made_up(40, seed) for name, seed in (("gist", 7), ("pos", 7), ("neg", 7))}
    for i, record in enumerate(runs["neg"]):
        record["prediction"] = "nothing"
        runs["gist"][i]["prediction"] = "nothing" if i % 4 == 0 else runs["pos"][i]["prediction"]
    paths = {name: write(tmp_path / f"{name}.csv", records) for name, records in runs.items()}
    printed = command(
        evaluate,
        monkeypatch,
        capsys,
        *(f"--predictions={paths['gist']}", f"--against={paths['pos']}"),
        *(f"--pos_control={paths['pos']}", f"--neg_control={paths['neg']}"),
    )
    of = {name: plain_means(records)[2] for name, records in runs.items()}
    line = next(line for line in printed.splitlines() if line.startswith("rougeL "))
    numbers = [float(x) for x in line.replace(" to ", " ").split()[1:]]
    expected = of["gist"], of["pos"], of["gist"] - of["pos"]
    assert [numbers[i] for i in (0, 3, 4)] == pytest.approx(expected, abs=0.006)
    assert numbers[5] <= numbers[4] <= numbers[6] <= 0
    share = 100 * (of["gist"] - of["neg"]) / (of["pos"] - of["neg"])
    assert numbers[7] == pytest.approx(share, abs=0.006)
    assert numbers[8] < numbers[7] < numbers[9] <= 100


def test_why_an_output_ended(workdir, lm):
    for record in read_predictions(workdir / "predictions" / "8-validation_human.csv"):
        assert record["k"] == "1" and record["reason"] in ("eos", "length")
        template = lm.template
        whole = template.prompt_ids(record["instruction"], record["input"], 48)
        assert int(record["prompt_tokens"]) == len(whole)
        before = whole.index(lm.tokenizer.gist_id) - (template.space_before_gists is not None)
        assert int(record["instruction_tokens"]) == before
        assert int(record["output_tokens"]) <= (2 if record["reason"] == "eos" else 3)
        assert record["reason"] == "eos" or record["output_tokens"] == "3"
