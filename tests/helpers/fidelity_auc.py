"""Whether fidelity tells wrong outputs from right ones: the area under its curve, of a demo's models.

PYTHONPATH=tests/helpers python tests/helpers/fidelity_auc.py --demo=DIR

An output from a gist is wrong if it is not the reference answer of the corpus. The area is the share of
pairs of a wrong and a right output of which the wrong one's prompt has the larger mean KL, with its 95 %
bootstrap interval over outputs. Fidelity knows no answers: it compares with what the model writes from
the whole prompt, its mask untouched, or with what the demo's pos_control model writes.
"""

import argparse
import pathlib
from typing import NamedTuple

import numpy as np
from scipy import stats

import gist_jax
from gist_jax.data.sources import first, load_splits
from gist_jax.evaluation.predict import predict
from gist_jax.inference.fidelity import compare
from gist_jax.io import read_json
from gist_jax.workdir import CONFIG

SPLITS = ("validation_unseen", "validation_human")
RESAMPLED = 1000
UNMASKED = "itself unmasked"
REFERENCES = (UNMASKED, "pos_control")


class Area(NamedTuple):
    """An area under the curve, and its interval."""

    value: float
    low: float
    high: float
    num_wrong: int
    num_right: int


Areas = dict[str, Area]  # "reference/split"


def area(divergence: np.ndarray, wrong: np.ndarray) -> float:
    """The share of pairs in which the wrong output diverges more, ties being half."""
    found = stats.mannwhitneyu(divergence[wrong], divergence[~wrong]).statistic
    return float(found / (wrong.sum() * (~wrong).sum()))


def with_interval(divergence: np.ndarray, wrong: np.ndarray) -> Area:
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(wrong), size=(RESAMPLED, len(wrong)))
    areas = [area(divergence[i], wrong[i]) for i in drawn if 0 < wrong[i].sum() < len(i)]
    low, high = np.quantile(areas, [0.025, 0.975]).tolist()
    return Area(area(divergence, wrong), low, high, int(wrong.sum()), int((~wrong).sum()))


def measure(folder: pathlib.Path, names: tuple[str, ...] = REFERENCES, num_examples: int = 500) -> Areas:
    """The areas by reference, of those named, of each split and of both together."""
    lm = gist_jax.load(folder / "gist")
    evaluation = read_json(folder / "gist" / CONFIG)["evaluation"]
    lengths = {name: evaluation[name] for name in ("max_new_tokens", "max_input_length")}
    examples = {name: first(load_splits("instructions")[name], num_examples) for name in SPLITS}
    wrong = {}
    for name, of_split in examples.items():
        records = predict(lm, of_split, batch_size=64, **lengths)
        wrong[name] = np.array([r["prediction"] != r["reference"].strip() for r in records])
    areas = {}
    for name in names:
        reference = None if name == UNMASKED else gist_jax.load(folder / name)
        divergence = {}
        for split, of_split in examples.items():
            pairs = ([example[field] for example in of_split] for field in ("instruction", "input"))
            compared = compare(lm, *pairs, reference, lengths["max_new_tokens"])
            divergence[split] = np.array([output.kl.mean() for output in compared])
            areas[f"{name}/{split}"] = with_interval(divergence[split], wrong[split])
        both = (np.concatenate([x[split] for split in SPLITS]) for x in (divergence, wrong))
        areas[f"{name}/both"] = with_interval(*both)
    return areas


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--demo", type=pathlib.Path, required=True, help="folder of gist_jax.demo")
    arguments.add_argument("--num_examples", type=int, default=500, help="of each split")
    options = arguments.parse_args()
    for name, found in measure(options.demo, num_examples=options.num_examples).items():
        counts = f"{found.num_wrong} wrong, {found.num_right} right"
        print(f"{name}: {found.value:.3f} ({found.low:.3f} to {found.high:.3f}), {counts}")
