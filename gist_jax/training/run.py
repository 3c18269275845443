"""From a config and a workdir to all that training needs, checked before anything is computed."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
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
from gist_jax.training.config import validate


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to start, or to go on."""

    config: ConfigDict
    workdir: pathlib.Path
    splits: dict[str, Sequence[Example]]
    tokenizer: Tokenizer
    model: LlamaConfig
    init: Callable[[], llama.Params]  # the parameters to start from

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
    workdir = pathlib.Path(workdir)
    _check_same_run(config, workdir)
    splits = load_splits(config.data.source)
    if "train" not in splits:
        raise ValueError(f"{config.data.source} has no train split")
    tokenizer = _tokenizer(config, workdir, splits["train"])
    if config.pretrained:
        model, params = load_llama(config.pretrained, config.param_dtype)
        model, params = _with_gist_token(model, params, tokenizer)
        init = lambda: params  # noqa: E731
    else:
        model = LlamaConfig(vocab_size=tokenizer.vocab_size, **config.model)
        key = jax.random.key(config.seed)
        init = lambda: llama.init(model, key, jnp.dtype(config.param_dtype))  # noqa: E731
    longest = max(config.data.max_length, config.evaluation.max_input_length)
    if longest + config.evaluation.max_new_tokens > model.max_positions:
        raise ValueError(
            f"prompts of {longest} tokens and {config.evaluation.max_new_tokens} new ones do not fit "
            f"into the model's {model.max_positions} positions"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(workdir / files.TOKENIZER)
    files.save_model(workdir, model, config.condition, config.num_gist_tokens)
    files.write_json(workdir / "config.json", config.to_dict())
    return Run(config, workdir, splits, tokenizer, model, init)


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
