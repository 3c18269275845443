"""The defaults of every training run. A file in configs/ changes what it needs."""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from gist_jax.errors import UserError
from gist_jax.gist import MaskConfig
from gist_jax.models.adapter import TARGETS, AdapterConfig
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
