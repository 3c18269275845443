"""Where examples come from: one line says it.

    instructions                       the embedded corpus
    suite                              prompts to evaluate on, unlike the corpus: `gist_jax.data.suite`
    PATH                               a directory with train.json and any validation_*.json, or a file
    json:PATH csv:PATH parquet:PATH    the same, whatever the files are called at the end
    hf:NAME[:CONFIG]                   Hugging Face datasets: a hub id, or a directory of `save_to_disk`
    tfds:NAME                          TensorFlow Datasets that are built and stored as array_record
    arrayrecord:GLOB                   files of records, each a JSON object
    text:PATH                          a .txt file, or a directory of them, each a document

What follows a scheme may end with `?instruction=prompt&output=answer`, which names the fields of its
records, or `?fields=dolly`, a ready mapping of `gist_jax.data.fields`; without either, the first ready
mapping that suits the first record is taken. `tfds:NAME?data_dir=DIR` says where it was built.

Records `{"text": …}` are documents, as are those of which `?text=content` names the field;
`?compress=0.5` compresses the first half of every window of theirs: see `gist_jax.data.windows`.

Several sources with weights between them are a mixture: `3*json:mine.json + 1*instructions`.
"""

import dataclasses
import hashlib
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

from gist_jax.data import instructions, record_files, suite
from gist_jax.data.documents import Documents, TextFiles, require_instructions, share
from gist_jax.data.fields import DOCUMENT, FIELDS, Example, Record, checked, is_document, mapping
from gist_jax.data.files import SUFFIXES, read_records
from gist_jax.data.mixture import FINEST, Mixture
from gist_jax.errors import UserError

EMBEDDED = "instructions"
SUITE = "suite"


class Examples(Protocol):
    """The examples of a split: a list, or what makes or reads one when it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...
    def __iter__(self) -> Iterator[Example]: ...


@dataclasses.dataclass(frozen=True, repr=False)
class Mapped:
    """The records of one split of a source, read and mapped to examples when they are asked for."""

    records: Sequence[Record]
    example: Callable[[Record], Mapping[str, Any]]
    where: str
    labelled: bool = True  # False: the records need no outputs, and what they have does not count

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        return self._checked(index, self.records[index])

    # Grain calls it for what it needs at a time, which some sources read faster than one by one.
    def _getitems(self, indices: Sequence[int]) -> list[Example]:
        together = getattr(self.records, "__getitems__", None)
        read = together(indices) if together else [self.records[i] for i in indices]
        return [self._checked(*pair) for pair in zip(indices, read, strict=True)]

    def _checked(self, index: int, record: Record) -> Example:
        example = self.example(record)
        return checked(example if self.labelled else {**example, "output": ""}, index, self.where)

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Mapped({self.where}, {len(self)} examples)"


@dataclasses.dataclass(frozen=True)
class Data:
    """The splits of a source, "train" and others to evaluate on, and a hash of what they hold."""

    splits: dict[str, Examples]
    fingerprint: str


def load_splits(source: str) -> dict[str, Examples]:
    """Examples by split, see `load_data`."""
    return load_data(source).splits


def load_data(source: str, labelled: bool = True, documents: bool = False) -> Data:
    """Opens a source, or a mixture of several.

    Files are read whole; datasets and record files are read when an example is asked for.

    Args:
      source: a line as the module's text describes it.
      labelled: False: the records need no outputs; those of the examples are empty.
      documents: whether there may be documents, examples `{"text": …}`, in place of instructions.

    Raises:
      UserError: in one sentence, if there is no such source or it holds no examples.
    """
    data = _load_data(source, labelled)
    if not documents:
        require_instructions(source, data.splits)
    return data


def _load_data(source: str, labelled: bool) -> Data:
    if not source:
        raise UserError("config.data.source is empty: give a directory or a file of records")
    lines = re.split(r"\s+\+\s+", source.strip())
    weighed = [re.fullmatch(r"(?:([0-9.]+)\s*\*\s*)?(.+)", line) for line in lines]
    single = len(lines) == 1 and (weighed[0] is None or weighed[0][1] is None)
    if single or _exists(source):  # whatever is in its name
        return _load_one(source, labelled)
    weights, parts = list[Fraction](), []
    for line, found in zip(lines, weighed, strict=True):
        try:
            weight = Fraction(found[1] or 1) if found else Fraction(0)
        except ValueError:
            weight = Fraction(0)
        if found is None or weight <= 0:
            raise UserError(f"a part of the mixture {source!r} is {line!r}: write WEIGHT*SOURCE")
        weights.append(weight)
        parts.append(_load_one(found[2], labelled))
    shares = [weight / sum(weights) for weight in weights]
    if math.lcm(*(share.denominator for share in shares)) > FINEST:
        raise UserError(f"the weights of the mixture {source!r} are too fine: write fewer digits")
    splits: dict[str, Examples] = {}
    for name in dict.fromkeys(name for part in parts for name in part.splits):
        having = [
            (part.splits[name], share, part.fingerprint)
            for part, share in zip(parts, shares, strict=True)
            if name in part.splits
        ]
        if name == "train" and len(having) < len(parts):
            raise UserError(f"a source of the mixture {source!r} has no train split")
        splits[name] = Mixture(*zip(*having, strict=True)) if len(having) > 1 else having[0][0]
    said = [f"{part.fingerprint} {share}" for part, share in zip(parts, shares, strict=True)]
    return Data(splits, _hash(*said))


def _load_one(source: str, labelled: bool) -> Data:
    if source == EMBEDDED:
        splits: dict[str, Examples] = {name: instructions.Corpus(name) for name in instructions.SPLITS}
        return Data(splits, EMBEDDED)
    if source == SUITE:
        return Data({SUITE: suite.examples()}, _hash(suite.fingerprint()))
    scheme, separator, rest = source.partition(":")
    if not separator or scheme not in _SCHEMES or _exists(source):
        opened, options = _open_files(source, ""), dict[str, str]()
    else:
        found = re.fullmatch(r"(.*?)(?:\?(\w+=[^&=?]+(?:&\w+=[^&=?]+)*))?", rest)
        rest, query = found.groups() if found else (rest, None)
        options = dict(pair.split("=") for pair in query.split("&")) if query else {}
        known = {"fields", DOCUMENT, "compress", *FIELDS} | ({"data_dir"} if scheme == "tfds" else set())
        if unknown := options.keys() - known:
            raise UserError(
                f"{source} ends with {sorted(unknown)[0]}=…, which is not known: write fields=, "
                "instruction=, input= or output=, or of documents text= or compress="
            )
        opened = _SCHEMES[scheme](rest, options.pop("data_dir", None))
    splits = {}
    for name, (records, where) in opened.splits.items():
        if not len(records):
            raise UserError(f"{where} has no records")
        splits[name] = _mapped(records, where, options, labelled)
    # How much of documents is compressed changes nothing of what they hold.
    said = sorted((name, value) for name, value in options.items() if name != "compress")
    return Data(splits, _hash(str(said), *opened.digests))


def _mapped(records: Sequence[Record], where: str, options: dict[str, str], labelled: bool) -> Examples:
    """The examples of a split; of a list of records all are checked at once."""
    if DOCUMENT in options or "compress" in options or (not options and is_document(records[0])):
        if options.keys() - {DOCUMENT, "compress"}:
            raise UserError("give either the field of documents or those of instructions")
        compress = share(options["compress"]) if "compress" in options else 0.0
        documents = Documents(records, options.get(DOCUMENT, DOCUMENT), where, compress)
        if isinstance(records, list):
            for _ in documents:
                pass
        return documents
    mapped = Mapped(records, mapping(options, records[0], labelled), where, labelled)
    return list(mapped) if isinstance(records, list) else mapped


def _exists(path: str) -> bool:
    try:
        return pathlib.Path(path).exists()
    except OSError:  # of names that are too long
        return False


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _open_files(source: str, kind: str) -> record_files.Opened:
    path = pathlib.Path(source)
    if path.is_file():
        splits = {"train": path}
    else:
        suffixes = {"json": (".json", ".jsonl"), "": SUFFIXES}.get(kind, (f".{kind}",))
        splits = {}
        for file in sorted(f for f in path.glob("*") if f.suffix in suffixes):
            if file.stem == "train" or file.stem.startswith("validation"):
                if file.stem in splits:
                    raise UserError(f"{source} has both {splits[file.stem].name} and {file.name}")
                splits[file.stem] = file
    if not splits:
        raise UserError(
            f"{source} is neither {EMBEDDED!r}, nor a file, nor a directory with train.json or "
            "validation_*.json, nor does it begin with json:, csv:, parquet:, hf:, tfds:, arrayrecord: "
            "or text:"
        )
    return record_files.Opened(
        {name: (read_records(file, kind), str(file)) for name, file in splits.items()},
        record_files.digests(splits.items()),
    )


def _open_text(path: str) -> record_files.Opened:
    """Opens a .txt file, a directory of them, or one with the directories train and validation_*."""
    top = pathlib.Path(path)
    folders = {f.name: f for f in top.glob("*") if f.is_dir()}
    named = {name: f for name, f in folders.items() if name == "train" or name.startswith("validation")}
    found = {"train": [top]} if top.is_file() else {}
    for name, folder in (named or {"train": top}).items():
        if files := sorted(folder.glob("*.txt")):
            found[name] = files
    if not found:
        raise UserError(f"text:{path} is neither a file nor a directory with .txt files")
    return record_files.Opened(
        {name: (TextFiles(files), str(files[0].parent)) for name, files in found.items()},
        record_files.digests((name, file) for name, files in found.items() for file in files),
    )


_SCHEMES: dict[str, Callable[[str, str | None], record_files.Opened]] = {
    "json": lambda path, _: _open_files(path, "json"),
    "csv": lambda path, _: _open_files(path, "csv"),
    "parquet": lambda path, _: _open_files(path, "parquet"),
    "hf": lambda name, _: record_files.open_huggingface(name),
    "tfds": record_files.open_tfds,
    "arrayrecord": lambda pattern, _: record_files.open_array_records(pattern),
    "text": lambda path, _: _open_text(path),
}


def first(examples: Examples, count: int) -> list[Example]:
    """The first `count` examples, or all if there are fewer; of a mixture each part's share of them."""
    if isinstance(examples, Mixture):
        shares = zip(examples.parts, examples.weights, strict=True)
        return [example for part, share in shares for example in first(part, round(count * share))]
    return [examples[i] for i in range(min(count, len(examples)))]
