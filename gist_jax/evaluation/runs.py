"""Training runs to be compared: what each wrote, and what sets them apart."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from gist_jax.errors import UserError
from gist_jax.evaluation.predictions import Record, read_predictions
from gist_jax.gist import CONDITIONS
from gist_jax.io import read_json
from gist_jax.training.config import flat_config
from gist_jax.training.run import MUTABLE_ON_RESUME
from gist_jax.workdir import CONFIG, MODEL, best_predictions, read_model

# Fields of the config that have columns of their own.
_OWN = ("condition", "num_gist_tokens", "gist_token_choices")
_FEWEST = "_k1"  # behind the name of a split: the predictions are those with one gist token


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with one number of gist tokens, and what it wrote."""

    name: str
    condition: str
    k: int
    splits: dict[str, list[Record]]
    config: dict[str, Any]  # flat
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # what sets it apart besides


def read_runs(paths: Sequence[pathlib.Path]) -> tuple[list[Run], list[str]]:
    """Reads the predictions of the best checkpoints of runs.

    Args:
      paths: workdirs, or folders of workdirs.

    Returns:
      The runs, pos_control first, then gist with more and more gist tokens, then neg_control; and the
      names of those that have not been evaluated yet.

    Raises:
      UserError: if there are none, or one cannot be read.
    """
    workdirs = list(dict.fromkeys(workdir for path in paths for workdir in _workdirs(path)))
    names = [workdir.resolve().name for workdir in workdirs]
    if len(set(names)) < len(names):  # of several sweeps
        names = list(map(str, workdirs))
    runs: list[Run] = []
    empty = []
    for name, workdir in zip(names, workdirs, strict=True):
        found = _runs(name, workdir)
        runs += found
        if not found:
            empty.append(name)
    if not runs:
        raise UserError(f"{', '.join(empty)}: no run has been evaluated yet")
    order = {condition: i for i, condition in enumerate(("pos_control", "gist", "neg_control"))}
    runs.sort(key=lambda run: (order[run.condition], run.k))
    return _apart(runs), empty


def _workdirs(path: pathlib.Path) -> list[pathlib.Path]:
    if (path / MODEL).exists():
        return [path]
    if found := sorted(file.parent for file in path.glob(f"[!.]*/{MODEL}")):
        return found
    raise UserError(f"{path} is no training workdir, and holds none")


def _runs(name: str, workdir: pathlib.Path) -> list[Run]:
    """A run for each number of gist tokens that there are predictions with."""
    described = read_model(workdir)
    if described.condition not in CONDITIONS:
        raise UserError(f"{workdir / MODEL} has the condition {described.condition!r}")
    config = flat_config(read_json(workdir / CONFIG))
    of_k: dict[int, dict[str, list[Record]]] = {}
    for split, file in best_predictions(workdir).items():
        fewest = split.endswith(_FEWEST) and described.gist_token_choices
        k = 1 if fewest else described.num_gist_tokens
        of_k.setdefault(k, {})[split.removesuffix(_FEWEST) if fewest else split] = read_predictions(file)
    return [
        Run(name if len(of_k) == 1 else f"{name}, k = {k}", described.condition, k, splits, config)
        for k, splits in of_k.items()
    ]


def _apart(runs: Iterable[Run]) -> list[Run]:
    """The runs with the fields of their configs that are not the same in all of them."""
    runs = list(runs)
    fields = [
        field
        for field in dict.fromkeys(field for run in runs for field in run.config)
        if field not in _OWN and not {field, field.split(".")[0]} & set(MUTABLE_ON_RESUME)
        if any(run.config.get(field) != runs[0].config.get(field) for run in runs)
    ]
    return [
        dataclasses.replace(run, settings={field: run.config.get(field) for field in fields})
        for run in runs
    ]


def control(of: Run, condition: str, runs: Iterable[Run]) -> Run | None:
    """The control of a run: of several the one whose settings, and then k, are most like the run's."""
    candidates = [run for run in runs if run.condition == condition]

    def alike(run: Run) -> tuple[int, int]:
        same = sum(run.settings[field] == value for field, value in of.settings.items())
        return same, -abs(run.k - of.k)

    return max(candidates, key=alike, default=None)
