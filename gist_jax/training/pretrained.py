"""The model that a run starts from, or trains an adapter for: a workdir or a Hugging Face checkpoint."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from gist_jax.data.tokenization import Tokenizer
from gist_jax.errors import UserError
from gist_jax.interop.huggingface import Checkpoint, find, with_gist_token
from gist_jax.models import registry
from gist_jax.models.adapter import mean_embedding
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params
from gist_jax.training.config import adapter_config
from gist_jax.training.program import Program
from gist_jax.workdir import MODEL, TOKENIZER, read_model, read_params


class Pretrained:
    """A model that is opened and checked, but not yet read."""

    def __init__(self, name: str):
        """Finds a model.

        Raises:
          UserError: if there is none, or it cannot be read, or it is an adapter.
        """
        self.path = find(name)
        self._checkpoint: Checkpoint | None = None
        if (self.path / MODEL).exists():
            described = read_model(self.path)
            if described.adapter is not None:
                raise UserError(f"config.pretrained is {name}, which is an adapter: give its base")
            self._config, self._num_gist_tokens = described.config, described.num_gist_tokens
            self.tokenizer_path = self.path / TOKENIZER
        else:
            self._checkpoint = Checkpoint(self.path)
            self._config, self.tokenizer_path = self._checkpoint.config, self.path

    def config(self, tokenizer: Tokenizer, is_base: bool) -> ModelConfig:
        """The model's shape: as it is for a base, or with room for the gist token of a tokenizer."""
        if is_base:
            # A gist token that comes last needs no entry.
            needed = tokenizer.vocab_size - (tokenizer.gist_id == tokenizer.vocab_size - 1)
            if self._config.vocab_size < needed:
                raise UserError(
                    f"the tokenizer has {needed} entries without the gist token, but {self.path} only "
                    f"{self._config.vocab_size}"
                )
            return self._config
        rows = max(self._config.vocab_size, tokenizer.vocab_size)
        return dataclasses.replace(self._config, vocab_size=rows)

    def load(self, tokenizer: Tokenizer, shardings: Any) -> Params:
        """The parameters of `config(tokenizer, is_base=False)`, float32, to be trained."""
        if self._checkpoint is not None:
            return self._checkpoint.load_for(tokenizer, jnp.float32, shardings)
        if self._config.vocab_size < tokenizer.vocab_size:
            raise UserError(f"{self.path} has no room for the gist token of another tokenizer")
        params, _ = read_params(self.path, shardings)
        if self._num_gist_tokens:
            return params
        settings = dict(gist_id=tokenizer.gist_id, stored=self._config.vocab_size)
        return with_gist_token(params, **settings)

    def load_base(self, shardings: Any) -> Params:
        """The parameters as they are, in bfloat16 where they are stored so, otherwise in float32."""
        if self._checkpoint is None:
            return read_params(self.path, shardings)[0]
        return self._checkpoint.load(self._checkpoint.dtype, shardings)

    def has_gist_token(self, tokenizer: Tokenizer) -> bool:
        """Whether the model was trained with the gist token of a tokenizer."""
        if self._checkpoint is not None:
            return self._checkpoint.has_gist_token(tokenizer.vocab_size)
        return self._num_gist_tokens > 0


def start(
    config: ConfigDict,
    program: Program,
    model: ModelConfig,
    tokenizer: Tokenizer,
    pretrained: Pretrained | None,
) -> tuple[Callable[[], Params], Params | None]:
    """What gives the parameters that training starts from, and those that stay as they are."""
    shardings, key = program.param_shardings, jax.random.key(config.seed)
    if pretrained is None:
        return jax.jit(functools.partial(registry.init, model, key), out_shardings=shardings), None
    if program.frozen is None:
        return functools.partial(pretrained.load, tokenizer, shardings), None
    placed = jax.tree.map(lambda x: x.sharding, program.frozen)
    adapter = adapter_config(config)
    if adapter is None:  # the teacher is a copy
        copy = pretrained.load(tokenizer, placed)
        rounded = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(config.param_dtype), params))
        return functools.partial(pretrained.load, tokenizer, shardings), rounded(copy)
    base = pretrained.load_base(placed)
    random = functools.partial(registry.init_adapter, model, adapter, key)
    first = functools.partial(
        _adapter_start,
        base,
        tokenizer,
        pretrained.has_gist_token(tokenizer),
        jax.jit(random, out_shardings=shardings),
        shardings["gist_embedding"],
    )
    return first, base


def absolute(name: str) -> str:
    """A path that holds wherever a command is run; a hub id as it is."""
    path = pathlib.Path(name)
    return str(path.resolve()) if path.is_dir() else name


def check_same_base(config: ConfigDict, workdir: pathlib.Path, fingerprint: str, resumes: bool) -> None:
    """Raises if the base of an adapter changed since its run began."""
    before = read_model(workdir).adapter if resumes else None
    if before is not None and before.fingerprint != fingerprint:
        raise UserError(
            f"the weights of {config.pretrained} changed since the run in {workdir} began: their "
            f"fingerprint is {fingerprint}, not {before.fingerprint}; choose another workdir"
        )


def _adapter_start(
    base: Params,
    tokenizer: Tokenizer,
    has_gist_token: bool,
    init: Callable[[], Params],
    sharding: NamedSharding,
) -> Params:
    """The parameters that an adapter begins with.

    Its gist token's embedding is the base's own, or the mean of all tokens' if the base was not trained
    with one.

    Args:
      init: gives the parameters without the embedding, placed.
      sharding: of the embedding.
    """
    gist_id = tokenizer.gist_id

    @functools.partial(jax.jit, out_shardings=sharding)
    def embedding(table: jax.Array) -> jax.Array:
        if has_gist_token:
            return table[gist_id].astype(jnp.float32)
        return mean_embedding(table, min(gist_id, len(table)))

    return {**init(), "gist_embedding": embedding(base["embedding"])}
