"""Finding a model by a path or a hub id, and an adapter with its base."""

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from gist_jax.cli import DTYPES, mesh_of
from gist_jax.data.tokenization import load_tokenizer
from gist_jax.errors import UserError
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.parameters import load_shardings
from gist_jax.interop.huggingface import Checkpoint, find
from gist_jax.io import Path, atomic_directory
from gist_jax.models.adapter import Adapter
from gist_jax.sharding import inference_mesh
from gist_jax.workdir import (
    MODEL,
    TOKENIZER,
    Description,
    read_model,
    read_params,
    write_adapter,
    write_model,
)


def load(
    path: Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | Mapping[str, int] | None = None,
    adapter: Path | None = None,
    base: Path | None = None,
) -> LanguageModel:
    """Loads a model with its tokenizer.

    Args:
      path: a training workdir (also in a bucket, gs://BUCKET/FOLDER), a directory in Hugging Face
        format, or a hub id. An adapter, or the workdir of its run, is loaded with the base that it was
        trained beside.
      dtype: of the parameters and the computation, "float32" or "bfloat16".
      mesh: of several devices: `{"tensor": 4}` splits heads, feed-forward network and vocabulary over
        the first four, with "data" beside it rows over groups of them. None: one device.
      adapter: of `path`, which is its base then.
      base: of the adapter in `path`, where it is no longer where it was.

    Returns:
      The model, whose methods take and give texts.

    Raises:
      UserError: in one sentence, if there is no such model or it cannot be read, or an adapter is of
        another base.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype must be {' or '.join(DTYPES)}, not {dtype!r}")
    if mesh is not None and not isinstance(mesh, Mesh):
        mesh = inference_mesh(mesh)
    directory = find(path)
    described = read_model(directory) if (directory / MODEL).exists() else None
    if described is not None and described.adapter is not None:
        if adapter is not None:
            raise UserError(
                f"{path} is an adapter itself: give its base together with adapter={adapter}"
            )
        return _adapted(directory, described, base or described.adapter.base, dtype, mesh)
    if base is not None:
        raise UserError(f"{path} is no adapter, so that it has no base")
    if adapter is not None:
        found = find(adapter)
        of_adapter = read_model(found) if (found / MODEL).exists() else None
        if of_adapter is None or of_adapter.adapter is None:
            raise UserError(f"{adapter} is no adapter")
        return _adapted(found, of_adapter, path, dtype, mesh)
    if described is not None:
        shardings = load_shardings(described.config, mesh)
        return LanguageModel.from_params(
            read_params(directory, shardings)[0],
            described.config,
            load_tokenizer(directory / TOKENIZER),
            num_gist_tokens=described.num_gist_tokens,
            condition=described.condition,
            template=described.template,
            dtype=dtype,
            gist_token_choices=described.gist_token_choices,
            mask=described.mask,
            mesh=mesh,
            donate=True,
        )
    if not (directory / "config.json").exists():
        raise UserError(f"{directory} holds neither a trained run nor a Hugging Face checkpoint")
    checkpoint, tokenizer = Checkpoint(directory), load_tokenizer(directory)
    condition, num_gist_tokens, template, mask = checkpoint.gist_settings(tokenizer)
    return LanguageModel.from_params(
        checkpoint.load(dtype, load_shardings(checkpoint.config, mesh)),
        checkpoint.config,
        tokenizer,
        num_gist_tokens=num_gist_tokens,
        condition=condition,
        template=template,
        dtype=dtype,
        mask=mask,
        mesh=mesh,
        donate=True,
    )


def _adapted(
    directory: pathlib.Path, described: Description, base: Path, dtype: str, mesh: Mesh | None
) -> LanguageModel:
    """A base with its adapter."""
    adapter = described.adapter
    assert adapter is not None
    try:
        bare = load(base, dtype=dtype, mesh=mesh)
    except UserError as error:
        raise UserError(f"cannot load the base of the adapter {directory}: {error}") from None
    if bare.adapter is not None:
        raise UserError(f"{base} is an adapter, and no base of another")
    if (found := bare.origin.base) != adapter.fingerprint:
        raise UserError(
            f"the adapter {directory} was trained beside another base than {base}: one of fingerprint "
            f"{adapter.fingerprint}, not {found}"
        )
    params, _ = read_params(directory)
    model = dataclasses.replace(
        bare,
        tokenizer=load_tokenizer(directory / TOKENIZER),
        num_gist_tokens=described.num_gist_tokens,
        condition=described.condition,
        template_name=described.template,
        gist_token_choices=described.gist_token_choices,
        mask=described.mask,
    )
    return model.with_adapter(Adapter(params, adapter.config))


def load_chosen(options: argparse.Namespace, **settings: Any) -> LanguageModel:
    """Loads what the arguments of `cli.add_model` name; `settings` come before them."""
    chosen = dict(dtype=options.dtype, adapter=options.adapter, base=options.base, mesh=mesh_of(options))
    return load(options.model, **{**chosen, **settings})


def export_adapter(path: Path, output: Path) -> None:
    """Writes the adapter of a run as a small directory of its own, see `gist_jax.workdir`.

    Its base need not be there.
    """
    directory = find(path)
    described, tokenizer = read_model(directory), load_tokenizer(directory / TOKENIZER)
    params, _ = read_params(directory)
    with atomic_directory(output) as tmp:
        write_model(tmp, described)
        tokenizer.save(tmp / TOKENIZER)
        write_adapter(tmp, params)


def is_adapter(path: Path) -> bool:
    """Whether there is an adapter, or the workdir of its run."""
    directory = find(path)
    return (directory / MODEL).exists() and read_model(directory).adapter is not None
