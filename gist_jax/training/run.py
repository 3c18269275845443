"""Prepares all that training needs from a config and a workdir, checked before anything is computed."""

import dataclasses
import importlib.util
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable

import jax
from absl import logging
from ml_collections import ConfigDict

from gist_jax.data import instructions
from gist_jax.data.documents import require_instructions
from gist_jax.data.prompt_template import PromptTemplate
from gist_jax.data.sources import EMBEDDED, Examples, first, load_data
from gist_jax.data.tokenization import (
    SPECIAL_TOKENS,
    Tokenizer,
    from_tokenizers,
    load_tokenizer,
    train_bpe,
)
from gist_jax.errors import UserError, shortened
from gist_jax.inference.fingerprint import base_fingerprint
from gist_jax.io import read_json, write_json
from gist_jax.models import registry
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params, unstacked
from gist_jax.sharding import batch_sharding, make_mesh
from gist_jax.storage import as_path, is_bucket, put
from gist_jax.training import distributed
from gist_jax.training.config import (
    EVALUATIONS,
    adapter_config,
    evaluation_lengths,
    flat_config,
    gist_token_counts,
    mask_config,
)
from gist_jax.training.examples import Encoded, training_examples
from gist_jax.training.pretrained import Pretrained, absolute, check_same_base, start
from gist_jax.training.program import Program, make_program
from gist_jax.training.validation import validate
from gist_jax.workdir import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    TOKENIZER,
    AdapterDescription,
    Description,
    read_model,
    write_model,
)

# Fields that change no loss, so a run may be resumed with others.
MUTABLE_ON_RESUME = ("attention", "checkpoint", "data.cache", "evaluation", "log", "mesh", "remat")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to start, or to be resumed."""

    config: ConfigDict
    workdir: pathlib.Path
    splits: dict[str, Examples]
    examples: Encoded  # of training
    fingerprint: str  # of the data
    template: PromptTemplate
    model: ModelConfig
    program: Program
    init: Callable[[], Params]  # the parameters to start from, placed on the mesh
    frozen: Params | None = None  # of an adapter's base, or of the teacher, placed on the mesh

    def validation_splits(self) -> dict[str, Examples]:
        """The first examples of every split but train, as many as the config asks for."""
        count = self.config.evaluation.num_examples
        return {name: first(split, count) for name, split in self.splits.items() if name != "train"}


def prepare(config: ConfigDict, workdir: str | pathlib.Path) -> Run:
    """Checks the config, loads data and tokenizer, and describes the run in its workdir.

    Raises:
      ValueError: in one sentence, if the config cannot be run, or the workdir holds another run.
    """
    validate(config)
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("config.log.wandb needs the package wandb: pip install 'gist_jax[wandb]'")
    mesh = make_mesh(config.mesh)
    batch_sharding(mesh, config.data.batch_size, config.optimizer.accumulate)
    workdir = as_path(workdir)
    resumes = _check_same_run(config, workdir)
    data = load_data(config.data.source, documents=True)
    splits = data.splits
    _check_splits(config, splits)
    if resumes:
        _check_same_data(config, workdir, data.fingerprint)
    for name in set(config.evaluation.splits) - set(splits):
        logging.warning("config.evaluation.splits.%s is for a split that the data does not have", name)
    pretrained = Pretrained(config.pretrained) if config.pretrained else None
    tokenizer = (
        load_tokenizer(workdir / TOKENIZER) if resumes else _tokenizer(config, splits, pretrained)
    )
    adapter = adapter_config(config)
    if pretrained is None:
        model = model_config(config, tokenizer.vocab_size)
    else:
        model = pretrained.config(tokenizer, is_base=adapter is not None)
    _check_positions(config, splits, model)
    counts = gist_token_counts(config)
    mask, kind = mask_config(config), config.data.template
    template = PromptTemplate.of_model(model, tokenizer, counts[-1], kind, mask.placement)
    _check_room(config, template)
    examples = training_examples(config, splits["train"], template, data.fingerprint)
    program = make_program(config, model, tokenizer.gist_id, mesh, template.space_before_gists)
    init, frozen = start(config, program, model, tokenizer, pretrained)
    described = Description(model, config.condition, counts[-1], template.name, mask=mask)
    if len(counts) > 1:
        described = described._replace(gist_token_choices=counts)
    if adapter is not None and pretrained is not None and frozen is not None:
        fingerprint = base_fingerprint(jax.jit(unstacked)(frozen), model)
        check_same_base(config, workdir, fingerprint, resumes)
        base = absolute(config.pretrained)
        described = described._replace(adapter=AdapterDescription(adapter, base, fingerprint))

    # Of several processes none may look into the workdir after the first has begun to write.
    distributed.check_same(
        "config, data, tokenizer and workdir",
        f"{config} {data.fingerprint} {tokenizer.fingerprint()} {resumes}",
    )
    if distributed.is_first():
        _describe(config, workdir, tokenizer, described, data.fingerprint, resumes)
    distributed.wait_for_all("described")
    data_of_run = splits, examples, data.fingerprint
    return Run(config, workdir, *data_of_run, template, model, program, init, frozen)


def _check_room(config: ConfigDict, template: PromptTemplate) -> None:
    """Raises if a template writes so much that no room is left for texts."""
    if template.chat is None:  # as `validate` checks it
        return
    least = len(template.prompt_ids("x", "", sys.maxsize))
    # A long output takes up to half of a row.
    if least >= min(config.data.max_length // 2, config.evaluation.max_input_length):
        raise UserError(
            "config.data.max_length and config.evaluation.max_input_length leave no room for texts: a "
            f"chat without any has {least} tokens"
        )


def _check_same_data(config: ConfigDict, workdir: pathlib.Path, fingerprint: str) -> None:
    """Raises if the data changed since the run began; runs before there was data.json may resume."""
    if not (workdir / DATA).exists():
        return
    before = read_json(workdir / DATA).get("fingerprint")
    if before != fingerprint:
        raise UserError(
            f"the data of {config.data.source} changed since the run in {workdir} began: their "
            f"fingerprint is {fingerprint}, not {before}; choose another workdir, or bring them back"
        )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value  # as JSON has it


def _check_positions(config: ConfigDict, splits: Iterable[str], model: ModelConfig) -> None:
    if config.data.max_length > model.max_positions:
        raise UserError(
            f"rows of {config.data.max_length} tokens do not fit into the model's "
            f"{model.max_positions} positions"
        )
    for split in splits:
        lengths = evaluation_lengths(config.evaluation, split)
        if sum(lengths.values()) > model.max_positions:
            raise UserError(
                f"prompts of {lengths['max_input_length']} and {lengths['max_new_tokens']} new tokens "
                f"do not fit into the model's {model.max_positions} positions"
            )


def _check_same_run(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether the workdir holds a run to resume; raises if it is one of another config.

    A workdir without a checkpoint holds nothing that could be lost: its run starts again. A field that
    the run's config does not have yet counts with its default.
    """
    path, checkpoints = workdir / CONFIG, workdir / CHECKPOINTS
    if not (checkpoints.is_dir() and any(step.name.isdigit() for step in checkpoints.iterdir())):
        return False
    read_model(workdir)  # which refuses what another version of gist_jax has written
    before, now = flat_config(read_json(path)), flat_config(config.to_dict())
    for name in sorted(before.keys() | now.keys()):
        mutable = name in MUTABLE_ON_RESUME or name.split(".")[0] in MUTABLE_ON_RESUME
        if _plain(before.get(name)) != _plain(now.get(name)) and not mutable:
            raise UserError(
                f"{workdir} holds a run whose config.{name} is {before.get(name)!r}, not "
                f"{now.get(name)!r}: choose another workdir, or resume with the same config"
            )
    return True


def _check_splits(config: ConfigDict, splits: dict[str, Examples]) -> None:
    if "train" not in splits:
        raise UserError(f"{config.data.source} has no train split")
    kind = config.evaluation.kind
    if kind != "loss":
        require_instructions(config.data.source, {n: x for n, x in splits.items() if n != "train"})
    metrics = [f"{split}/{x}" for split in splits if split != "train" for x in EVALUATIONS[kind]]
    if metrics and config.checkpoint.metric not in metrics:
        raise UserError(
            f"config.checkpoint.metric is {config.checkpoint.metric!r} but must be one of "
            f"{', '.join(metrics)}"
        )


def _tokenizer(
    config: ConfigDict, splits: dict[str, Examples], pretrained: Pretrained | None
) -> Tokenizer:
    name = config.data.tokenizer
    if name.startswith("bpe:"):
        if not name[4:].isdigit() or not 260 <= int(name[4:]) <= 10**6:
            raise UserError(f"config.data.tokenizer is {name!r}: write bpe:4096 for 4096 entries")
        texts = (text for example in splits["train"] for text in example.values())
        return train_bpe(texts, int(name[4:]))
    if name:
        return load_tokenizer(name)
    if pretrained:
        return load_tokenizer(pretrained.tokenizer_path)
    if config.data.source == EMBEDDED:
        return from_tokenizers(instructions.load_tokenizer(), SPECIAL_TOKENS)
    raise UserError("config.data.tokenizer is empty: give a directory, a file, or bpe:4096")


def model_config(config: ConfigDict, vocab_size: int | None = None) -> ModelConfig:
    """The shape that `config.model` describes.

    Args:
      vocab_size: of the tokenizer; None: the config alone must say it.

    Raises:
      UserError: if there can be no such model.
    """
    shape = config.model.to_dict()
    rows = shape.pop("vocab_size")
    if vocab_size is None and not rows:
        raise UserError("config.model.vocab_size is 0, that of a tokenizer: give a number")
    if vocab_size is not None and 0 < rows < vocab_size:
        raise UserError(f"config.model.vocab_size is {rows}, but the tokenizer has {vocab_size} entries")
    shape["vocab_size"] = rows or vocab_size
    family = registry.FAMILIES[shape.pop("family")]
    try:
        return family.config(**shape)
    except ValueError as error:
        raise UserError(f"config.model: {shortened(error)}") from None


def _describe(
    config: ConfigDict,
    workdir: pathlib.Path,
    tokenizer: Tokenizer,
    described: Description,
    fingerprint: str,
    resumes: bool,
) -> None:
    """Describes the run in its workdir. config.json comes last: with it the description is complete."""
    if not is_bucket(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    if not resumes:
        _write_tokenizer(workdir, tokenizer)
        write_model(workdir, described)
    write_json(workdir / DATA, {"source": config.data.source, "fingerprint": fingerprint})
    write_json(workdir / CONFIG, config.to_dict())


def _write_tokenizer(workdir: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Puts a tokenizer in the place of one that may be there, of a run that saved nothing."""
    target = workdir / TOKENIZER
    if is_bucket(workdir):
        for file in target.glob("*"):
            file.unlink()
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(folder)
            put(pathlib.Path(folder), target)
        return
    tmp = workdir / f".{os.getpid()}.{TOKENIZER}"
    tokenizer.save(tmp)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(tmp, target)
