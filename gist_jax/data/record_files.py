"""Data sets that are read record by record: array_record files, TFDS, and Hugging Face datasets."""

import concurrent.futures
import glob
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gist_jax.data.fields import Record
from gist_jax.errors import UserError, shortened
from gist_jax.io import Path, atomic_write


class Opened(NamedTuple):
    """Records by split, each with words that say where they are, and hashes of the files they are in."""

    splits: dict[str, tuple[Sequence[Record], str]]
    digests: list[str]


SAMPLES, SAMPLE = 256, 2**20  # blocks of a large file that are hashed, and bytes of each


def digests(files: Iterable[tuple[str, Path]]) -> list[str]:
    """The split of each file with a hash of its bytes.

    Of a file above 256 MiB the hash is of its size and 256 MiB spread over it.

    Args:
      files: pairs of a split and a file in it.
    """
    named = list(files)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        hashes = threads.map(_digest, [file for _, file in named])
        return [f"{split} {digest}" for (split, _), digest in zip(named, hashes, strict=True)]


def _digest(file: Path) -> str:
    size = pathlib.Path(file).stat().st_size
    with open(file, "rb") as opened:
        if size <= SAMPLES * SAMPLE:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for i in range(SAMPLES):
            opened.seek((size - SAMPLE) * i // (SAMPLES - 1))
            digest.update(opened.read(SAMPLE))
    return digest.hexdigest()


class ArrayRecords(Sequence[Record]):
    """The records of array_record files, each a JSON object, in the order of the files."""

    def __init__(self, files: Sequence[str]):
        import grain

        self.files = list(files)
        try:
            self._records = grain.sources.ArrayRecordDataSource(self.files)
            self._length = len(self._records)
        except Exception as error:  # of several kinds, for files that are damaged
            raise UserError(f"cannot read {self.files[0]}: {shortened(error)}") from None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([index])[0]

    # The name that other data sources have for it, too. One record takes 390 µs to read, 64 at a time a
    # fraction of that each.
    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        try:
            read = self._records.__getitems__(indices)
        except Exception as error:  # of several kinds, for files that are damaged
            if len(indices) > 1:  # one of them says that it is it
                return [self[i] for i in indices]
            raise UserError(
                f"cannot read record {indices[0]} of {self.files[0]}: {shortened(error)}"
            ) from None
        return [self._record(*pair) for pair in zip(indices, read, strict=True)]

    def _record(self, index: int, read: bytes) -> Record:
        try:
            record = json.loads(read)
        except ValueError as error:
            raise UserError(
                f"cannot read record {index} of {self.files[0]}: {shortened(error)}"
            ) from None
        if not isinstance(record, dict):
            raise UserError(f"record {index} of {self.files[0]} is no JSON object")
        return record

    # A worker process opens the files itself.
    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayRecords, (self.files,)


def open_array_records(pattern: str) -> Opened:
    """Opens files by a glob pattern.

    The splits are those that the files are named after, as in `validation_seen.array_record` or
    `train-00000-of-00002.array_record`; files of other names are training examples.
    """
    files = sorted(glob.glob(pattern))
    if not files:
        raise UserError(f"there are no files {pattern}")
    splits: dict[str, list[str]] = {}
    for file in files:
        named = r"(?:^|[-._])(train|validation\w*|valid|dev|test)(?:[-.]|$)"
        name = re.search(named, pathlib.Path(file).name)
        splits.setdefault(name[1] if name else "train", []).append(file)
    opened = {name: (ArrayRecords(found), found[0]) for name, found in splits.items()}
    return Opened({**opened}, digests((name, f) for name, found in splits.items() for f in found))


def write_array_record(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as JSON objects into one array_record file, whole or not at all."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with atomic_write(path) as tmp:
        # Groups of one: a record is found by its number, without those beside it.
        writer = ArrayRecordWriter(str(tmp), "group_size:1")
        for record in records:
            writer.write(json.dumps(record, ensure_ascii=False).encode())
        writer.close()


def open_tfds(name: str, data_dir: str | None) -> Opened:
    """Opens a data set of TensorFlow Datasets that was built with `file_format="array_record"`."""
    import tensorflow_datasets as tfds  # takes seconds to import

    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
        splits = {split: builder.as_data_source(split) for split in builder.info.splits}
    except Exception as error:  # of many kinds
        raise UserError(
            f"cannot read tfds:{name}: {shortened(error)}; build it with file_format='array_record'"
        ) from None
    files = [(f.name, f) for f in sorted(pathlib.Path(builder.data_path).glob("*.array_record*"))]
    return Opened(
        {split: (found, f"tfds:{name}/{split}") for split, found in splits.items()}, digests(files)
    )


def open_huggingface(name: str) -> Opened:
    """Opens a data set by hub id, `ID` or `ID:CONFIG`, or a directory that `save_to_disk` made."""
    import datasets  # takes a second to import

    path, _, config = name.partition(":")
    saved = [pathlib.Path(path) / file for file in ("dataset_dict.json", "state.json")]
    try:
        if any(file.exists() for file in saved):
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, config or None)
    except Exception as error:  # of many kinds
        raise UserError(f"cannot load hf:{name}: {shortened(error)}") from None
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    files = [
        (str(name), file["filename"]) for name, split in splits.items() for file in split.cache_files
    ]
    opened = {str(split): (found, f"hf:{name}/{split}") for split, found in splits.items()}
    hashes = digests(files) or [split._fingerprint for split in splits.values()]
    return Opened({**opened}, hashes)
