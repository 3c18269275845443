"""Token ids of a split's examples, made once and kept on disk.

A directory per split and tokenizer, under `~/.cache/gist_jax/tokens` or $XDG_CACHE_HOME:

    ids.npy       int32 [total]: instruction, input and output of one example after another
    bounds.npy    int64 [N, 4]: where each of an example's three parts begins, and the last ends
    own.npy       int32 [N]: `EncodedExample.own`
    checksums.json    of these; written last
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from filelock import FileLock
from tqdm import tqdm

from gist_jax.data.fields import Example
from gist_jax.data.prompt_template import EncodedExample, PromptTemplate
from gist_jax.data.sources import Examples
from gist_jax.errors import UserError
from gist_jax.io import atomic_directory, read_json, user_cache

VERSION = 1  # of what is cached: of the files, and of how text becomes ids
CHUNK = 4096  # examples that are encoded at a time, or fewer with so many characters
CHUNK_CHARACTERS = 4_000_000
_CHECKSUMS = "checksums.json"
_FILES = ("ids", "bounds", "own")


class TokenCache(Sequence[EncodedExample]):
    """Encoded examples, read from disk when they are asked for."""

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        load = {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in _FILES}
        self._ids, self._bounds, self._own = load["ids"], load["bounds"], load["own"]

    def __len__(self) -> int:
        return len(self._own)

    def __getitem__(self, index: Any) -> Any:
        a, b, c, d = self._bounds[index].tolist()
        ids = self._ids[a:d].tolist()
        return EncodedExample(ids[: b - a], ids[b - a : c - a], ids[c - a :], int(self._own[index]))

    def output_ids(self, index: int, start: int, count: int) -> list[int]:
        """So many ids of an example's output, or all that are left, from the `start`-th on."""
        _, _, c, d = self._bounds[index].tolist()
        ids: list[int] = self._ids[min(c + start, d) : min(c + start + count, d)].tolist()
        return ids

    def lengths(self) -> np.ndarray:
        """Numbers of tokens of instruction, input and output: int64 `[N, 3]`."""
        return np.diff(self._bounds, axis=1)

    def __repr__(self) -> str:
        return f"TokenCache({len(self)} examples)"

    # A worker process opens the files itself.
    def __reduce__(self) -> tuple[Any, ...]:
        return TokenCache, (self._directory,)


def token_cache(
    examples: Examples, template: PromptTemplate, fingerprint: str, description: str = "tokenizing"
) -> TokenCache:
    """The encoded examples of a split, from the cache, or made now.

    What is made by several processes at a time is made by one, while the others wait. What a kill
    leaves behind is never read; damaged files are made again.

    Args:
      fingerprint: of the examples.
    """
    said = [VERSION, fingerprint, template.tokenizer.fingerprint(), template.name]
    said += [template.is_encoder_decoder]
    key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]
    try:
        home = user_cache() / "tokens"
    except RuntimeError:
        raise UserError("there is no home to keep tokens in: set XDG_CACHE_HOME") from None
    directory = home / key
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f"{key}.lock"):
            if not _is_sound(directory):
                shutil.rmtree(directory, ignore_errors=True)
                for left in home.glob(f".*.{key}"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                with atomic_directory(directory) as tmp:
                    _build(tmp, examples, template, description)
        return TokenCache(directory)
    except OSError as error:
        raise UserError(
            f"cannot keep tokens in {home}: {error.strerror or error}; set config.data.cache=False to "
            "tokenize without"
        ) from None


def _checksum(file: pathlib.Path) -> int:
    checksum = 0
    with file.open("rb") as opened:
        while block := opened.read(2**22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _is_sound(directory: pathlib.Path) -> bool:
    if not directory.exists():
        return False
    try:
        checksums = read_json(directory / _CHECKSUMS)
        sound = all(_checksum(directory / f"{name}.npy") == checksums.get(name) for name in _FILES)
    except (OSError, UserError):
        sound = False
    if not sound:
        logging.warning("the tokens in %s are damaged, and made again", directory)
    return sound


def _chunks(examples: Examples) -> Iterator[list[Example]]:
    """The examples in lists that are encoded at a time: ids of long documents take much memory."""
    chunk: list[Example] = []
    size = 0
    for i in range(len(examples)):
        chunk.append(examples[i])
        size += sum(map(len, chunk[-1].values()))
        if len(chunk) == CHUNK or size > CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _build(
    directory: pathlib.Path, examples: Examples, template: PromptTemplate, description: str
) -> None:
    own = np.zeros(len(examples), np.int32)
    bounds = np.zeros((len(examples), 4), np.int64)
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context((directory / "raw").open("wb"))
        bar = stack.enter_context(tqdm(total=len(examples), desc=description, unit="example"))
        end = 0
        start = 0
        for texts in _chunks(examples):
            chunk = template.encode(texts)
            for i, example in enumerate(chunk, start):
                parts = example[:3]
                bounds[i] = end + np.cumsum([0, *map(len, parts)])
                end, own[i] = int(bounds[i, 3]), example.own
                raw.write(np.concatenate([np.asarray(part, np.int32) for part in parts]).tobytes())
            start += len(chunk)
            bar.update(len(chunk))
    ids = np.lib.format.open_memmap(directory / "ids.npy", mode="w+", dtype=np.int32, shape=(end,))
    if end:
        ids[:] = np.memmap(directory / "raw", np.int32, mode="r")
    ids.flush()
    (directory / "raw").unlink()
    np.save(directory / "bounds.npy", bounds)
    np.save(directory / "own.npy", own)
    checksums = {name: _checksum(directory / f"{name}.npy") for name in _FILES}
    (directory / _CHECKSUMS).write_text(json.dumps(checksums))
