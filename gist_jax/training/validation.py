"""What the values of a config must be: each mistake is one sentence, before anything is computed."""

import math
from typing import Any

import jax
from ml_collections import ConfigDict

from gist_jax.data.prompt_template import CHAT, PAPER
from gist_jax.errors import UserError
from gist_jax.gist import CONDITIONS
from gist_jax.models.adapter import TARGETS
from gist_jax.models.attention import IMPLEMENTATIONS
from gist_jax.models.registry import FAMILIES
from gist_jax.models.stack import REMAT_POLICIES
from gist_jax.training.config import (
    EVALUATIONS,
    LENGTHS,
    adapter_config,
    default,
    gist_token_counts,
    mask_config,
)
from gist_jax.training.losses import ALL, KINDS, LOSS_TOKENS


def validate(config: ConfigDict, platform: str | None = None) -> None:
    """Raises ValueError, in one sentence, for a value that no run can use.

    Args:
      platform: of the devices it is for, "cpu", "gpu" or "tpu"; by default that of those there are.
    """
    family = config.get("model", {}).get("family", "llama")
    if family not in FAMILIES:
        raise UserError(f"config.model.family is {family!r} but must be one of {', '.join(FAMILIES)}")
    if any(set(config.model) == set(default(f).model) for f in FAMILIES if f != family):
        raise UserError(
            f"config.model.family is {family!r} but the fields of config.model are those of another "
            f"family: let the config file begin with default({family!r})"
        )
    _reject_unknown(config, default(family), "")
    one_of = {
        "condition": CONDITIONS,
        "data.template": (PAPER, CHAT),
        "dtype": ("bfloat16", "float32"),
        "param_dtype": ("bfloat16", "float32"),
        "attention": IMPLEMENTATIONS,
        "remat": tuple(REMAT_POLICIES),
        "optimizer.name": ("adamw", "adafactor"),
        "optimizer.moment_dtype": ("float32", "bfloat16"),
        "optimizer.schedule": ("cosine", "constant"),
        "loss.kind": KINDS,
        "loss.tokens": LOSS_TOKENS,
        "evaluation.kind": tuple(EVALUATIONS),
    }
    for name, choices in one_of.items():
        value = _field(config, name)
        if value not in choices:
            raise UserError(f"config.{name} is {value!r} but must be one of {', '.join(choices)}")
    at_least_one = (
        *("num_steps", "data.batch_size", "data.max_length"),
        *("optimizer.accumulate", "checkpoint.every", "log.every"),
        *("evaluation.num_examples", "evaluation.batch_size", "data.max_output_length"),
    )
    reading, writing = ["data.max_length", "evaluation.max_input_length"], ["evaluation.max_new_tokens"]
    for split, lengths in config.evaluation.splits.items():
        for name in lengths if isinstance(lengths, ConfigDict) else [lengths]:
            if name not in LENGTHS or type(lengths[name]) is not int:
                raise UserError(
                    f"config.evaluation.splits.{split} must be whole numbers, by {' or '.join(LENGTHS)}"
                )
            of = writing if name == "max_new_tokens" else reading
            of.append(f"evaluation.splits.{split}.{name}")
    for name in (*at_least_one, *writing):
        if _field(config, name) < 1:
            raise UserError(f"config.{name} must be at least 1, but is {_field(config, name)}")
    positive = ("optimizer.learning_rate", "optimizer.clip_norm", "optimizer.eps")
    for name in (*positive, "adapter.alpha", "loss.temperature"):
        if not 0 < _field(config, name) < math.inf:  # nor NaN
            raise UserError(f"config.{name} must be above 0, but is {_field(config, name)}")
    buckets = tuple(config.data.buckets)
    if any(type(x) is not int or not 0 < x < config.data.max_length for x in buckets):
        raise UserError(
            f"config.data.buckets is {buckets} but must be lengths below config.data.max_length "
            f"({config.data.max_length})"
        )
    if buckets and config.data.pack:
        raise UserError("give either config.data.pack or config.data.buckets: packed rows are full")
    not_negative = ("optimizer.warmup_steps", "optimizer.weight_decay", "evaluation.every", "seed")
    for name in (*not_negative, "data.workers", "adapter.rank", "loss.top"):
        if not 0 <= _field(config, name) < 2**31:
            raise UserError(f"config.{name} must not be negative, but is {_field(config, name)}")
    for name in ("optimizer.b1", "optimizer.b2", "dropout", "loss.cross_entropy"):
        if not 0 <= _field(config, name) < 1:
            raise UserError(f"config.{name} must be in 0 … 1, but is {_field(config, name)}")
    if config.dropout > 0 and not FAMILIES[family].config.has_dropout:
        raise UserError(f"config.dropout is {config.dropout}, but {family} has no dropout")
    if config.dropout > 0 and config.attention == "cudnn":
        raise UserError("config.attention is 'cudnn', which has no dropout: set config.dropout to 0")
    device = platform or jax.default_backend()
    if config.attention == "cudnn" and device != "gpu":
        raise UserError(f"config.attention is 'cudnn', but the device is a {device}")
    if config.loss.tokens == ALL and FAMILIES[family].config.is_encoder_decoder:
        raise UserError(f"config.loss.tokens is {ALL!r}, but {family} predicts outputs alone")
    _check_gist_tokens(config)
    mask_config(config)
    for name in reading:
        if _field(config, name) < 2 * gist_token_counts(config)[-1] + 16:
            raise UserError(
                f"config.{name} is {_field(config, name)}, which leaves no room for an instruction "
                f"with {gist_token_counts(config)[-1]} gist token(s), an input and an output"
            )
    if config.data.batch_size % config.optimizer.accumulate:
        raise UserError(
            f"config.data.batch_size ({config.data.batch_size}) must be a multiple of "
            f"config.optimizer.accumulate ({config.optimizer.accumulate})"
        )


def _check_gist_tokens(config: ConfigDict) -> None:
    """Raises if numbers of gist tokens, adapter and loss do not fit each other."""
    choices = tuple(config.gist_token_choices)
    if any(type(k) is not int or k < 1 for k in choices):
        raise UserError(f"config.gist_token_choices is {choices} but must be numbers above 0")
    if not 0 <= config.num_gist_tokens < 2**31:
        raise UserError(f"config.num_gist_tokens must be at least 0, but is {config.num_gist_tokens}")
    if gist_token_counts(config) == (0,) and config.condition != "pos_control":
        raise UserError(
            f"config.num_gist_tokens is 0, but config.condition is {config.condition!r}: without gist "
            "tokens there is only plain finetuning, which is 'pos_control'"
        )
    options = config.adapter
    if unknown := sorted(set(options.targets) - set(TARGETS)):
        raise UserError(
            f"config.adapter.targets names {unknown[0]!r} but there are {', '.join(TARGETS)}"
        )
    if options.rank and not options.targets:
        raise UserError("config.adapter.targets is empty: set config.adapter.embedding_only")
    if options.rank and options.embedding_only:
        raise UserError("give either config.adapter.rank or config.adapter.embedding_only")
    adapts = adapter_config(config) is not None
    if adapts and gist_token_counts(config) == (0,):
        raise UserError("an adapter acts at gist tokens, but config.num_gist_tokens is 0")
    for wanted, what in ((adapts, "an adapter"), (config.loss.kind == "distill", "distillation")):
        if wanted and not config.pretrained:
            raise UserError(f"{what} needs a model to start from: set config.pretrained")


def _field(config: ConfigDict, dotted: str) -> Any:
    for name in dotted.split("."):
        config = config[name]
    return config


def _reject_unknown(config: ConfigDict, known: ConfigDict, prefix: str) -> None:
    for name, value in config.items():
        if name not in known:
            raise UserError(
                f"unknown config field {prefix}{name}: choose from {', '.join(sorted(known))}"
            )
        if isinstance(known[name], ConfigDict) and name != "splits":  # which the data names
            _reject_unknown(value, known[name], f"{prefix}{name}.")
    missing = [f"{prefix}{name}" for name in known if name not in config]
    if missing:
        raise UserError(f"the config has no field {', '.join(missing)}")
