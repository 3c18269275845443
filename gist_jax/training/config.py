"""The defaults of every training run. A file in configs/ changes what it needs."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from gist_jax.data.prompt_template import CHAT, PAPER
from gist_jax.errors import UserError
from gist_jax.gist import CONDITIONS, MaskConfig
from gist_jax.models.adapter import TARGETS, AdapterConfig
from gist_jax.models.attention import IMPLEMENTATIONS
from gist_jax.models.registry import FAMILIES
from gist_jax.models.stack import REMAT_POLICIES
from gist_jax.training.losses import ALL, KINDS, LOSS_TOKENS
from gist_jax.workdir import LOSSES

# What an evaluation measures, in percent, for every split: ROUGE F-measures and exact match.
METRICS = ("rouge1", "rouge2", "rougeL", "exact_match")
# What it measures by loss, less being better: nats for every predicted token and every byte of its text.
EVALUATIONS = {"generation": METRICS, "loss": LOSSES}
# What may differ between splits.
LENGTHS = ("max_new_tokens", "max_input_length")


# Shape of a model with random weights, by family. vocab_size is that of the tokenizer, gist token
# included, if it is 0, and at least that.
_MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "kind": "llama",  # or mistral, qwen2 (biases), qwen3 (normed queries and keys)
        "vocab_size": 0,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 16,
        "max_positions": 2048,
        "rope_theta": 10_000.0,
        "tie_embeddings": False,
        "initializer_range": 0.02,
    },
    "t5": {
        "vocab_size": 0,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 2,  # of the encoder
        "num_decoder_layers": 2,
        "num_heads": 4,
        "head_dim": 16,
        # True, True and False make T5 v1.0 of what is v1.1, or FLAN-T5.
        "tie_embeddings": False,
        "scale_outputs": False,
        "gated_gelu": True,
        "num_buckets": 32,
        "max_distance": 128,
        "initializer_factor": 1.0,
    },
}


def default(model_family: str = "llama") -> ConfigDict:
    """All fields there are, with the paper's recipe for LLaMA where it has one.

    Args:
      model_family: "llama" or "t5": which fields `model` has.
    """
    return ConfigDict(
        {
            "condition": "gist",  # gist, pos_control or neg_control
            "num_gist_tokens": 1,  # 0: plain finetuning, with pos_control
            # Numbers of which every example draws one, such as (1, 2, 5, 10), in place of the one above.
            "gist_token_choices": (),
            # Ablations of the mask; see `gist_jax.gist.MaskConfig`.
            "mask": {
                "extra": 0,  # later tokens also see so many of an instruction's last tokens
                "causal_gists": False,  # an encoder's gist tokens see none that come later
                "placement": "after",  # of gist tokens: after, before or spread over the instruction
            },
            "seed": 0,
            "num_steps": 3000,
            # Model to finetune: a workdir, a directory in Hugging Face format or a hub id; empty: none.
            "pretrained": "",
            # Low-rank weights at gist tokens alone, trained beside the frozen pretrained model.
            "adapter": {
                "rank": 0,  # 0: the whole model is trained
                "alpha": 16.0,  # what a pair adds is multiplied by alpha / rank
                "targets": TARGETS,  # projections that have a pair
                "embedding_only": False,  # the gist token's embedding alone, with rank 0
            },
            "loss": {
                # cross_entropy, or distill: the distance from what the pretrained model says after the
                # whole prompt, for which outputs need not be right.
                "kind": "cross_entropy",
                # Tokens that have a loss: output, or all, the prompt's too. Documents have no prompt.
                "tokens": "output",
                "temperature": 1.0,  # of both models in distillation
                "top": 0,  # the teacher's likeliest tokens, all others being one; 0: all tokens
                "cross_entropy": 0.0,  # its weight in distillation
            },
            # Shape of a model with random weights; ignored when there is a pretrained one.
            "model": {"family": model_family, **_MODELS[model_family]},
            "dtype": "bfloat16",  # of the computation: bfloat16 or float32
            # Of the parameters that a step computes with and of their gradients. The optimizer changes
            # master weights, which are float32; with bfloat16 a step begins with a rounded copy.
            "param_dtype": "float32",
            # blocks (of queries; memory for long rows, and faster), xla, or cudnn on an NVIDIA GPU
            "attention": "blocks",
            "dropout": 0.1 if model_family == "t5" else 0.0,  # rate; LLaMA has none
            "remat": "none",  # none, dots or full: what is recomputed in the backward pass
            "data": {
                # "instructions" (the embedded corpus), a directory with train.json and
                # validation_*.json, one file of records, hf:NAME, tfds:NAME, arrayrecord:GLOB, or a
                # mixture of these with weights: see gist_jax/data/sources.py.
                "source": "instructions",
                "template": "paper",  # how prompts are written; or chat, by the tokenizer's template
                # Directory or file of a tokenizer; "bpe:4096" trains one of 4096 entries on the
                # training texts; empty: that of the checkpoint or of the embedded corpus.
                "tokenizer": "",
                "batch_size": 128,  # rows per step, over all devices
                "max_length": 512,  # tokens per row; of an encoder-decoder, those of prompts
                "max_output_length": 256,  # of an encoder-decoder: tokens per row of outputs
                "pack": False,  # several examples in a row
                # Shorter lengths of rows, for batches of short examples, such as (128, 256).
                "buckets": (),
                # Keep the ids of training examples on disk; False tokenizes again and again, for
                # sources too large for that. The embedded corpus, which is endless, is never kept.
                "cache": True,
                "workers": 0,  # processes that make batches; 0: the one that trains
            },
            "optimizer": {
                "name": "adamw",  # adamw or adafactor, which has no b1, b2, eps and moment_dtype
                "learning_rate": 2e-5,
                "schedule": "cosine",  # cosine or constant, after linear warm-up
                "warmup_steps": 90,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "moment_dtype": "float32",  # of AdamW's first moment: float32 or bfloat16
                "weight_decay": 0.0,  # not on norms
                "clip_norm": 1.0,
                "accumulate": 1,  # microbatches per step
            },
            # Devices along each axis of the mesh; -1: all that are left.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "evaluation": {
                "kind": "generation",  # or loss, in nats: of documents, which ask for no output
                "every": 1000,  # steps; 0: only after the last
                "num_examples": 200,  # per split
                "batch_size": 64,
                "max_new_tokens": 64,
                "max_input_length": 512,  # tokens of a prompt; the inputs of longer ones are cut
                # Other lengths for some splits, as {"validation_human": {"max_new_tokens": 256}}.
                "splits": {},
            },
            "checkpoint": {
                "every": 500,  # steps, besides those after each evaluation
                "metric": "validation_seen/rougeL",  # the best by this one is kept, and the last
            },
            "log": {"every": 10, "wandb": False},
        }
    )


def flat_config(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a run's config.json, {"a.b": 1} of {"a": {"b": 1}}.

    Those that it does not have, because they are newer than the run, have their defaults.
    """
    model = fields.get("model")
    of_t5 = isinstance(model, dict) and model.get("family") == "t5"
    usual = default("t5" if of_t5 else "llama").to_dict()
    return flatten_dict(usual, sep=".") | flatten_dict(fields, sep=".")


def gist_token_counts(config: ConfigDict) -> tuple[int, ...]:
    """The numbers of gist tokens that examples have, ascending."""
    return tuple(sorted(set(config.gist_token_choices))) or (config.num_gist_tokens,)


def mask_config(config: ConfigDict) -> MaskConfig:
    """How the mask and the gist tokens differ from the paper's.

    Raises:
      UserError: if they cannot be so.
    """
    try:
        return MaskConfig(**config.mask.to_dict())
    except ValueError as error:
        raise UserError(f"config.mask.{error}") from None


def adapter_config(config: ConfigDict) -> AdapterConfig | None:
    """The shape of the adapter that is trained; None if the whole model is."""
    options = config.adapter
    if not options.rank and not options.embedding_only:
        return None
    return AdapterConfig(options.rank, float(options.alpha), tuple(options.targets))


def evaluation_lengths(evaluation: Mapping[str, Any], split: str) -> dict[str, int]:
    """`max_new_tokens` and `max_input_length` for a split."""
    of_split = evaluation.get("splits", {}).get(split, {})
    return {name: of_split.get(name, evaluation[name]) for name in LENGTHS}


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
