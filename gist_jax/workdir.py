"""What a training run leaves in its workdir, and how it is read.

config.json      the run's configuration
model.json       format version, shape of the model and gist settings
data.json        a hash of the data
tokenizer/       see gist_jax.data.tokenization
checkpoints/     Orbax, one directory a step
metrics.jsonl    losses and evaluations by step
predictions/     what the model wrote in evaluations, a CSV file each
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from gist_jax.errors import UserError, shortened
from gist_jax.io import Path, read_json, write_json
from gist_jax.models import registry
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params

FORMAT = 1  # of a workdir; a reader takes this one and all that were numbered before it
CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
MODEL = "model.json"
TOKENIZER = "tokenizer"


class Description(NamedTuple):
    """What model.json says of a model."""

    config: ModelConfig
    condition: str
    num_gist_tokens: int
    template: str  # `PromptTemplate.name`


def write_model(workdir: pathlib.Path, described: Description) -> None:
    """Writes model.json."""
    config = described.config
    description = {
        "format": FORMAT,
        "family": config.family,
        "config": dataclasses.asdict(config),
        "condition": described.condition,
        "num_gist_tokens": described.num_gist_tokens,
        "template": described.template,
    }
    write_json(workdir / MODEL, description)


def read_model(workdir: pathlib.Path) -> Description:
    """Reads model.json.

    Raises:
      UserError: if there is none, it lacks something, or a newer version has written it.
    """
    path = workdir / MODEL
    description = read_json(path)
    if description.get("format") not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} has format {description.get('format')!r}, but this version of gist_jax reads "
            f"formats 1 to {FORMAT}"
        )
    try:
        config = registry.FAMILIES[description["family"]].config(**description["config"])
        given = description["condition"], description["num_gist_tokens"]
        return Description(config, *given, description.get("template", "paper"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} describes no model: {shortened(error)}") from None


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl but one that a kill cut."""
    return [json.loads(line) for line in whole_lines(pathlib.Path(workdir) / METRICS)]


def whole_lines(path: pathlib.Path) -> list[str]:
    """The lines of a file that end."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def best_step(evaluations: Mapping[int, Mapping[str, float] | None], metric: str) -> int | None:
    """The one rule of which evaluation of a run is its best: highest metric, last among equals.

    Args:
      evaluations: step -> metrics, "split/metric" -> percent; those without the metric do not count.

    Returns:
      The step, or None if no evaluation has the metric.
    """
    evaluated = [
        (found[metric], step) for step, found in evaluations.items() if found and metric in found
    ]
    return max(evaluated)[1] if evaluated else None


def best_evaluation(workdir: Path, metric: str) -> dict[str, float]:
    """The metrics of a run's best evaluation, "split/metric" in percent; empty if there was none."""
    lines = {line["step"]: line for line in read_metrics(workdir) if metric in line}
    step = best_step(lines, metric)
    return {} if step is None else {name: x for name, x in lines[step].items() if "/" in name}


def write_params(workdir: pathlib.Path, params: Params) -> None:
    """Writes a checkpoint of step 0 that holds stacked parameters alone."""
    from orbax.checkpoint import v1 as ocp  # takes a second to import

    with ocp.training.Checkpointer((workdir / CHECKPOINTS).resolve()) as checkpoints:
        checkpoints.save_checkpointables(0, {"params": params})


def read_params(workdir: pathlib.Path) -> tuple[Params, int]:
    """Stacked parameters of the best checkpoint (of the last, if none was evaluated), and its step.

    Raises:
      UserError: if there is no checkpoint yet, or it cannot be read, or it is of another model than
        model.json describes.
    """
    from orbax.checkpoint import v1 as ocp

    config = read_model(workdir).config
    directory = workdir / CHECKPOINTS
    metric = read_json(workdir / CONFIG).get("checkpoint", {}).get("metric", "")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(lambda: registry.init(config, jax.random.key(0))),
    )
    if not directory.is_dir():
        raise UserError(f"{workdir} has no checkpoint yet")
    try:
        with ocp.training.Checkpointer(directory.resolve()) as checkpoints:
            metrics = {c.step: c.metrics for c in checkpoints.checkpoints}
            if not metrics:
                raise UserError(f"{workdir} has no checkpoint yet")
            best = best_step(metrics, metric)
            step = max(metrics) if best is None else best
            saved = ocp.checkpointables_metadata(directory.resolve() / str(step)).metadata["params"]
            if not jax.tree.leaves(saved):  # as Orbax gives them for damaged files
                raise UserError(f"a checkpoint of {workdir} cannot be read: it lists no parameters")
            _check_shapes(workdir, wanted, saved)
            loaded = checkpoints.load_checkpointables(step, {"params": wanted})
    except UserError:
        raise
    except Exception as error:  # of many kinds, of Orbax and TensorStore, for damaged files
        raise UserError(f"a checkpoint of {workdir} cannot be read: {shortened(error)}") from None
    return loaded["params"], step


def _check_shapes(workdir: pathlib.Path, wanted: Params, saved: Params) -> None:
    """Raises a UserError that names the first parameter model.json and a checkpoint disagree on."""
    shapes, found = (
        {name: tuple(leaf.shape) for name, leaf in flatten_dict(params, sep="/").items()}
        for params in (wanted, saved)
    )
    for name in sorted(shapes.keys() | found.keys()):
        if shapes.get(name) != found.get(name):
            raise UserError(
                f"{workdir / MODEL} does not describe its checkpoint: parameter {name} has "
                f"shape {found.get(name)} there, not {shapes.get(name)}"
            )
