"""Data sets that are read record by record: array_record files, TFDS, and Hugging Face datasets."""

import bisect
import concurrent.futures
import glob
import hashlib
import json
import pathlib
import re
import threading
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


# Both are for reading in a row. With them a record costs a walk through the file's whole index: of ten
# million records 180 ms, in place of 11 µs.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class ArrayRecords(Sequence[Record]):
    """The records of array_record files, each a JSON object, in the order of the files."""

    def __init__(self, files: Sequence[str]):
        from array_record.python.array_record_module import ArrayRecordReader

        self.files, self._lock = list(files), threading.Lock()
        self._readers, self._ends = [], [0]
        for file in self.files:
            try:
                reader = ArrayRecordReader(file, options=_READER_OPTIONS)
                if not reader.ok():
                    reader.close()  # which says what is wrong
                self._ends.append(self._ends[-1] + reader.num_records())
            except Exception as error:  # of several kinds, for files that are damaged
                raise UserError(f"cannot read {file}: {shortened(error)}") from None
            self._readers.append(reader)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        number = bisect.bisect_right(self._ends, index) - 1
        reader, file = self._readers[number], self.files[number]
        try:
            with self._lock:  # a reader has a place where it stands
                reader.seek(index - self._ends[number])
                record = json.loads(reader.read())
        except Exception as error:  # of several kinds, for files that are damaged
            raise UserError(f"cannot read record {index} of {file}: {shortened(error)}") from None
        if not isinstance(record, dict):
            raise UserError(f"record {index} of {file} is no JSON object")
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
