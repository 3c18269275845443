"""How far two who judge the same rows agree: a judge and people, or two judges."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gist_jax.data.files import read_records
from gist_jax.errors import UserError, shortened
from gist_jax.evaluation.intervals import Estimate, estimate, mean_draws
from gist_jax.evaluation.judge import CHOICES, SCORES
from gist_jax.evaluation.judgements import by_row, prompt, read_judgements
from gist_jax.evaluation.predictions import Record, keys
from gist_jax.io import Path

Labels = Sequence[tuple[Record, str]]  # records with instruction and input, and their choices


class Agreement(NamedTuple):
    """How often two agree."""

    rows: int
    percent: float
    kappa: Estimate  # Cohen's: 1 if they always agree, 0 if as often as by chance

    def __str__(self) -> str:
        value, low, high = self.kappa
        kappa = f"Cohen's kappa {value:.3f} ({low:.3f} to {high:.3f})"
        return f"{self.rows} labelled rows: {self.percent:.1f} % agree, {kappa}"


def agreement(judged: Labels, labels: Labels) -> Agreement:
    """Compares choices with labels of the same rows, or of some of them.

    Raises:
      UserError: if a label is for no row, or none is for a row with a choice.
    """
    choices = dict(zip(keys([record for record, _ in judged]), judged, strict=True))
    pairs = []
    for key, (record, label) in zip(keys([record for record, _ in labels]), labels, strict=True):
        if key not in choices:
            text = shortened(record["instruction"], 60)
            raise UserError(f"there is a label for {text!r}, which was not judged")
        choice = choices[key][1]
        if choice in CHOICES and label in CHOICES:
            pairs.append((SCORES[choice], SCORES[label]))
    if not pairs:
        raise UserError("no label is for a row with a choice of the judge")
    return _agreement(np.array(pairs))


def _agreement(pairs: np.ndarray) -> Agreement:
    """Of scores `[N, 2]`."""
    one_hot = [column[:, None] == list(SCORES.values()) for column in pairs.T]
    same = (pairs[:, 0] == pairs[:, 1])[:, None]
    shares = np.concatenate([same, *one_hot], axis=1).astype(float)
    kappa = _kappa(shares.mean(axis=0)[None])[0]
    return Agreement(len(pairs), 100 * float(same.mean()), estimate(kappa, _kappa(mean_draws(shares))))


def _kappa(shares: np.ndarray) -> np.ndarray:
    """Cohen's kappa (1960) of shares `[D, 7]`: of equal choices, and of each choice of both.

    Where both always make one and the same choice it is 1, as there is nothing to disagree on.
    """
    observed, chance = shares[:, 0], np.sum(shares[:, 1:4] * shares[:, 4:], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isclose(chance, 1), 1.0, (observed - chance) / (1 - chance))


def read_labels(path: Path, names: Sequence[str]) -> Labels:
    """Reads labels: a file of judgements of the same runs, or records with a choice and, in them,
    instruction and input, or x, as the published judgements have it.

    Args:
      names: of the runs a and b that they are compared with.

    Raises:
      UserError: if it cannot be read, or a choice is none.
    """
    path = pathlib.Path(path)
    if path.suffix == ".json" and path.is_file() and path.read_bytes().lstrip().startswith(b"{"):
        judged = read_judgements(path)
        if set(judged.names) != set(names):
            raise UserError(f"{path} compares {' and '.join(judged.names)}, not {' and '.join(names)}")
        turned = {} if judged.names == tuple(names) else {"a": "b", "b": "a"}
        return [(record, turned.get(choice, choice)) for record, choice in by_row(judged.results)]
    labels = []
    for number, record in enumerate(read_records(path), start=1):
        choice = str(record.get("choice", "")).strip().lower()
        if choice not in CHOICES or not ("instruction" in record or "x" in record):
            raise UserError(
                f"label {number} of {path} must have an instruction, or x, and a choice: a, b or tie"
            )
        instruction, given = prompt(record)
        labels.append(({"instruction": instruction, "input": given}, choice))
    return labels
