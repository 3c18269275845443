"""What a training run leaves in its workdir, and how it is read.

config.json      the run's configuration
model.json       format version, shape of the model and gist settings
data.json        a hash of the data
tokenizer/       see gist_jax.data.tokenization
checkpoints/     Orbax, one directory a step
metrics.jsonl    losses and evaluations by step; in a bucket metrics/NUMBER-STEP.json, one a line
predictions/     what the model wrote, a CSV file each: STEP-SPLIT.csv in evaluations of the run

Of an adapter's run the checkpoints hold the adapter alone; model.json says where its base is. An adapter
that is taken out of its run is a directory of its own:

model.json              as above
tokenizer/              as above
adapter.safetensors     its parameters, named by their paths, with stacked layers
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from gist_jax.errors import UserError, shortened
from gist_jax.gist import PAPER_MASK, MaskConfig
from gist_jax.io import Path, read_json, write_json
from gist_jax.models import registry
from gist_jax.models.adapter import AdapterConfig
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params
from gist_jax.sharding import with_shardings
from gist_jax.storage import absolute, as_path, is_bucket, read_all

FORMAT = 3  # of a workdir; a reader takes this one and all that were numbered before it
CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
METRICS_FOLDER = "metrics"  # in a bucket, where no file grows
MODEL = "model.json"
PREDICTIONS = "predictions"
ADAPTER = "adapter.safetensors"
TOKENIZER = "tokenizer"
LOSSES = ("loss", "nats_per_byte")  # metrics of an evaluation of which less is better


class AdapterDescription(NamedTuple):
    """What model.json says of an adapter."""

    config: AdapterConfig
    base: str  # path or hub id of the model that it was trained beside
    fingerprint: str  # of that model


class Description(NamedTuple):
    """What model.json says of a model."""

    config: ModelConfig
    condition: str
    num_gist_tokens: int  # the most that it was trained with
    template: str  # `PromptTemplate.name`
    gist_token_choices: tuple[int, ...] = ()  # all numbers it was trained with, if there are several
    adapter: AdapterDescription | None = None  # then the parameters are the adapter's, beside a base
    mask: MaskConfig = PAPER_MASK


def write_model(workdir: pathlib.Path, described: Description) -> None:
    """Writes model.json."""
    config, adapter = described.config, described.adapter
    has_mask = described.mask != PAPER_MASK
    description: dict[str, Any] = {
        # Versions of gist_jax that knew of no adapters knew format 1, those that knew of no masks 2.
        "format": FORMAT if has_mask else 1 if adapter is None else 2,
        "family": config.family,
        "config": dataclasses.asdict(config),
        "condition": described.condition,
        "num_gist_tokens": described.num_gist_tokens,
        "template": described.template,
    }
    if described.gist_token_choices:
        description["gist_token_choices"] = described.gist_token_choices
    if has_mask:
        description["mask"] = dataclasses.asdict(described.mask)
    if adapter is not None:
        of_base = {"base": adapter.base, "fingerprint": adapter.fingerprint}
        description["adapter"] = {**dataclasses.asdict(adapter.config), **of_base}
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
        template = description.get("template", "paper")
        choices = tuple(description.get("gist_token_choices", ()))
        if (fields := description.get("adapter")) is not None:
            fields = dict(fields)
            of_base = fields.pop("base"), fields.pop("fingerprint")
            shape = AdapterConfig(**{**fields, "targets": tuple(fields["targets"])})
            fields = AdapterDescription(shape, *of_base)
        mask = MaskConfig(**description.get("mask", {}))
        return Description(config, *given, template, choices, fields, mask)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} describes no model: {shortened(error)}") from None


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics but one that a kill cut.

    Raises:
      UserError: if one is damaged.
    """
    workdir = as_path(workdir)
    try:
        if is_bucket(workdir):
            lines = read_all(metrics_objects(workdir))
        else:
            lines = whole_lines(workdir / METRICS)
        return list(map(_metrics, lines))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {workdir / METRICS}: {shortened(error)}") from None


def _metrics(line: str) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        raise ValueError("a line is no object with a step")
    return found


def metrics_objects(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The objects of a workdir in a bucket that hold its metrics, in the order they were written."""
    return sorted((workdir / METRICS_FOLDER).glob("[0-9]*-[0-9]*.json"))


def whole_lines(path: pathlib.Path) -> list[str]:
    """The lines of a file that end."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def best_step(evaluations: Mapping[int, Mapping[str, float] | None], metric: str) -> int | None:
    """The one rule of which evaluation of a run is its best: highest metric, last among equals.

    Of losses the lowest is the best.

    Args:
      evaluations: step -> metrics, "split/metric" -> percent; those without the metric do not count.

    Returns:
      The step, or None if no evaluation has the metric.
    """
    sign = -1 if metric.endswith(LOSSES) else 1
    evaluated = [
        (sign * found[metric], step) for step, found in evaluations.items() if found and metric in found
    ]
    return max(evaluated)[1] if evaluated else None


def best_evaluation(workdir: Path, metric: str) -> dict[str, float]:
    """The metrics of a run's best evaluation, "split/metric" in percent; empty if there was none."""
    lines = _evaluations(workdir, metric)
    step = best_step(lines, metric)
    return {} if step is None else {name: x for name, x in lines[step].items() if "/" in name}


def _evaluations(workdir: Path, metric: str) -> dict[int, dict[str, float]]:
    return {line["step"]: line for line in read_metrics(workdir) if metric in line}


def best_predictions(workdir: Path) -> dict[str, pathlib.Path]:
    """The CSV files of a run's best evaluation by split, and those without a step in their names.

    The latter are what `gist_jax.evaluate` writes there of other data, such as predictions/suite.csv.
    """
    workdir = pathlib.Path(workdir)
    metric = read_json(workdir / CONFIG).get("checkpoint", {}).get("metric", "")
    step = best_step(_evaluations(workdir, metric), metric) if (workdir / METRICS).exists() else None
    found = {}
    for file in sorted((workdir / PREDICTIONS).glob("[!.]*.csv")):
        of_step = re.fullmatch(r"(\d+)-(.+)", file.stem)
        if of_step is None or int(of_step[1]) == step:
            found[of_step[2] if of_step else file.stem] = file
    return found


def write_params(workdir: pathlib.Path, params: Params) -> None:
    """Writes a checkpoint of step 0 that holds stacked parameters alone."""
    from orbax.checkpoint import v1 as ocp  # takes a second to import

    with ocp.training.Checkpointer((workdir / CHECKPOINTS).resolve()) as checkpoints:
        checkpoints.save_checkpointables(0, {"params": params})


def read_params(workdir: pathlib.Path, shardings: Any = None) -> tuple[Params, int]:
    """Stacked parameters of the best checkpoint (of the last, if none was evaluated), and its step.

    Args:
      shardings: one for every parameter; None puts all on the first device.

    Raises:
      UserError: if there is no checkpoint yet, or it cannot be read, or it is of another model than
        model.json describes.
    """
    from orbax.checkpoint import v1 as ocp

    described = read_model(workdir)
    if (workdir / ADAPTER).exists():
        return _read_adapter(workdir, described), 0
    directory = absolute(workdir / CHECKPOINTS)
    metric = read_json(workdir / CONFIG).get("checkpoint", {}).get("metric", "")
    wanted = _shapes(described)
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, wanted)
    wanted = with_shardings(wanted, shardings)
    if not directory.is_dir():
        raise UserError(f"{workdir} has no checkpoint yet")
    try:
        with ocp.training.Checkpointer(directory) as checkpoints:
            metrics = {c.step: c.metrics for c in checkpoints.checkpoints}
            if not metrics:
                raise UserError(f"{workdir} has no checkpoint yet")
            best = best_step(metrics, metric)
            step = max(metrics) if best is None else best
            saved = ocp.checkpointables_metadata(directory / str(step)).metadata["params"]
            if not jax.tree.leaves(saved):  # as Orbax gives them for damaged files
                raise UserError(f"a checkpoint of {workdir} cannot be read: it lists no parameters")
            _check_shapes(workdir, wanted, saved)
            loaded = checkpoints.load_checkpointables(step, {"params": wanted})
    except UserError:
        raise
    except Exception as error:  # of many kinds, of Orbax and TensorStore, for damaged files
        raise UserError(f"a checkpoint of {workdir} cannot be read: {shortened(error)}") from None
    return loaded["params"], step


def write_adapter(directory: pathlib.Path, params: Params) -> None:
    """Writes an adapter's parameters, with stacked layers, beside its model.json."""
    save_file(flatten_dict(params, sep="/"), directory / ADAPTER)


def _read_adapter(directory: pathlib.Path, described: Description) -> Params:
    """Parameters that `write_adapter` has written, on the first device."""
    try:
        params = unflatten_dict(load_file(directory / ADAPTER), sep="/")
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"cannot read {directory / ADAPTER}: {shortened(error)}") from None
    _check_shapes(directory, _shapes(described), params)
    return params


def _shapes(described: Description) -> Params:
    """ShapeDtypeStructs of what a workdir's checkpoints hold."""
    key = jax.random.key(0)
    if described.adapter is None:
        return jax.eval_shape(lambda: registry.init(described.config, key))
    shape = described.adapter.config
    return jax.eval_shape(lambda: registry.init_adapter(described.config, shape, key))


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
