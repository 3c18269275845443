"""From a config and a workdir to all that training needs, checked before anything is computed."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from gist_jax.data import instructions
from gist_jax.data.sources import EMBEDDED, Example, load_splits
from gist_jax.data.tokenization import (
    SPECIAL_TOKENS,
    Tokenizer,
    from_tokenizers,
    load_tokenizer,
    train_bpe,
)
from gist_jax.interop import workdir as files
from gist_jax.interop.huggingface import load_llama
from gist_jax.models import llama
from gist_jax.models.config import LlamaConfig
from gist_jax.training import sharding
from gist_jax.training.config import validate


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to start, or to go on."""

    config: ConfigDict
    workdir: pathlib.Path
    splits: dict[str, Sequence[Example]]
    tokenizer: Tokenizer
    model: LlamaConfig
    shapes: llama.Params  # of the parameters: ShapeDtypeStructs
    init: Callable[[], llama.Params]  # the parameters to start from, placed on the mesh
    mesh: Mesh
    params_on: Any  # sharding of every parameter
    rows_on: NamedSharding  # of a batch

    @property
    def validation_splits(self) -> dict[str, Sequence[Example]]:
        """The first examples of every split but train, as many as the config asks for."""
        count = self.config.evaluation.num_examples
        return {
            name: [examples[i] for i in range(min(count, len(examples)))]
            for name, examples in self.splits.items()
            if name != "train"
        }


def prepare(config: ConfigDict, workdir: str | pathlib.Path) -> Run:
    """Checks the config, loads data and tokenizer, and describes the run in its workdir.

    Raises:
      ValueError: in one sentence, if the config cannot be run, or the workdir holds another run.
    """
    validate(config)
    mesh = sharding.make_mesh(config)
    rows_on = sharding.batch_sharding(mesh, config.data.batch_size, config.optimizer.accumulate)
    workdir = pathlib.Path(workdir)
    _check_same_run(config, workdir)
    splits = load_splits(config.data.source)
    if "train" not in splits:
        raise ValueError(f"{config.data.source} has no train split")
    tokenizer = _tokenizer(config, workdir, splits["train"])
    if config.pretrained:
        model, params = load_llama(config.pretrained, config.param_dtype)
        model, params = _with_gist_token(model, params, tokenizer)
        shapes = jax.eval_shape(lambda: params)
    else:
        model = LlamaConfig(vocab_size=tokenizer.vocab_size, **config.model)
        params = functools.partial(
            llama.init, model, jax.random.key(config.seed), jnp.dtype(config.param_dtype)
        )
        shapes = jax.eval_shape(params)
    longest = max(config.data.max_length, config.evaluation.max_input_length)
    if longest + config.evaluation.max_new_tokens > model.max_positions:
        raise ValueError(
            f"prompts of {longest} tokens and {config.evaluation.max_new_tokens} new ones do not fit "
            f"into the model's {model.max_positions} positions"
        )
    params_on = sharding.param_shardings(mesh, llama.logical_axes(model), shapes)
    if config.pretrained:
        init = functools.partial(jax.device_put, params, params_on)
    else:
        init = jax.jit(params, out_shardings=params_on)
    # Nothing is written before all is known to fit.
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(workdir / files.TOKENIZER)
    files.save_model(workdir, model, config.condition, config.num_gist_tokens)
    files.write_json(workdir / "config.json", config.to_dict())
    return Run(config, workdir, splits, tokenizer, model, shapes, init, mesh, params_on, rows_on)


def _check_same_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    path = workdir / "config.json"
    if not path.exists():
        return
    before, now = json.loads(path.read_text()), json.loads(json.dumps(config.to_dict()))
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"{workdir} holds a run whose config.{name} is {before.get(name)}, not {now.get(name)}: "
            "choose another workdir, or go on with the same config"
        )


def _tokenizer(config: ConfigDict, workdir: pathlib.Path, train: Sequence[Example]) -> Tokenizer:
    saved = workdir / files.TOKENIZER
    if saved.is_dir() and any(saved.iterdir()):  # of the run that goes on
        return load_tokenizer(saved)
    name = config.data.tokenizer
    if name.startswith("bpe:"):
        if not name[4:].isdigit():
            raise ValueError(f"config.data.tokenizer is {name!r}; write bpe:4096 for 4096 entries")
        texts = (text for e in train for text in (e["instruction"], e["input"], e["output"]))
        return train_bpe(texts, int(name[4:]))
    if name:
        return load_tokenizer(name)
    if config.pretrained:
        return load_tokenizer(config.pretrained)
    if config.data.source == EMBEDDED:
        return from_tokenizers(instructions.load_tokenizer(), SPECIAL_TOKENS)
    raise ValueError("config.data.tokenizer is empty: give a directory, a file, or bpe:4096")


def _with_gist_token(
    model: LlamaConfig, params: llama.Params, tokenizer: Tokenizer
) -> tuple[LlamaConfig, llama.Params]:
    """Adds vocabulary rows up to the gist token's, each the mean of the rows there were."""
    missing = tokenizer.vocab_size - model.vocab_size
    if missing <= 0:
        return model, params

    def extended(x, axis):
        mean = jnp.mean(x, axis=axis, keepdims=True, dtype=jnp.float32).astype(x.dtype)
        return jnp.concatenate([x, jnp.repeat(mean, missing, axis)], axis=axis)

    params = {**params, "embedding": extended(params["embedding"], 0)}
    if not model.tie_embeddings:
        params["head"] = {"kernel": extended(params["head"]["kernel"], 1)}
    return dataclasses.replace(model, vocab_size=tokenizer.vocab_size), params
