"""Files from outside with random damage: each must end in a UserError, or be read.

python tests/helpers/fuzz.py --seconds=300 [TARGET…]

Prints every case that ends otherwise with its number, which `case` makes again.
"""

import argparse
import contextlib
import copy
import csv
import functools
import io
import itertools
import json
import os
import pathlib
import random
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"

# In place of a value of JSON.
JUNK: list[Any] = [None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**80, -(2**70), 0.5, 1e308, -0.0]
JUNK += [float("nan"), float("inf"), "", "x", "\ud800", "\x00", "é" * 300, "1", "-5", "../..", "{"]
JUNK += ["/dev/null", [], [[]], [None], {}, {"a": 1}, [1, 2, 3], ["x"], [0] * 99, {"": {}}, "<GIST>"]
PIECES = (b"\x00", b"\xff\xfe", b"\r", b'"', b"\n\n", b"{", b"\xed\xa0\x80")  # of bytes
CELLS = ("", "-1", "nan", "x" * 9999, 'a"b', "1e999", "\n", "9" * 40)  # of CSV


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some of them changed, removed, repeated or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 30))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.choice((1, 4, 100))]
            case 2:
                del changed[at:]
            case 3:
                changed[at:at] = changed[at : at + rng.choice((1, 8, 200))]
            case 4:
                changed[at:at] = rng.choice(PIECES)
            case 5 if changed:
                changed[at % len(changed)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if not isinstance(value, dict | list):
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _nodes(inner, (*path, key))


def mutate_json(value: Any, rng: random.Random) -> Any:
    """A value with some of its parts replaced, removed, renamed, doubled or exchanged."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        paths = list(_nodes(value))
        path = rng.choice(paths)
        if not path:
            if rng.random() < 0.1:
                value = copy.deepcopy(rng.choice(JUNK))
            continue
        parent = functools.reduce(lambda inner, key: inner[key], path[:-1], value)
        key = path[-1]
        match rng.randrange(6):
            case 0 | 1:
                parent[key] = copy.deepcopy(rng.choice(JUNK))
            case 2:
                del parent[key]
            case 3 if isinstance(parent, dict):
                parent[rng.choice(("", "x", f"{key}_", key[:-1], "format", "__class__"))] = parent[key]
            case 3:
                parent.append(parent[key])
            case 4 if isinstance(parent[key], int | float):
                number = parent[key]
                parent[key] = rng.choice((-number, number + 1, number * 1000, str(number)))
            case _:
                other = rng.choice(paths)
                with contextlib.suppress(KeyError, IndexError, TypeError):
                    found = functools.reduce(lambda inner, key: inner[key], other, value)
                    parent[key] = json.loads(json.dumps(found))
    return value


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def mutate_json_file(data: bytes, rng: random.Random) -> bytes:
    return _dumped(mutate_json(json.loads(data), rng))


def mutate_json_lines(data: bytes, rng: random.Random) -> bytes:
    lines = [json.loads(line) for line in data.splitlines()]
    changed = mutate_json(lines, rng)
    return b"\n".join(map(_dumped, changed if isinstance(changed, list) else [changed])) + b"\n"


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A file whose header is well formed, and says something else; texts of JSON in it too."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    about = header.get("__metadata__", {})
    if "gist_cache" in about and rng.random() < 0.5:
        about["gist_cache"] = json.dumps(mutate_json(json.loads(about["gist_cache"]), rng))
    elif rng.random() < 0.3:  # other numbers
        values = [rng.choice((0.0, -1.0, 7.0, float("nan"))) for _ in range(len(rest) // 4)]
        rest = struct.pack(f"<{len(values)}f", *values)
    else:
        header = mutate_json(header, rng)
    text = _dumped(header)
    return struct.pack("<Q", len(text)) + text + rest


def mutate_csv(data: bytes, rng: random.Random) -> bytes:
    """A table whose cells, columns or rows are others."""
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(rows) if rows else []
        match rng.randrange(4):
            case 0 if row:
                row[rng.randrange(len(row))] = rng.choice(CELLS)
            case 1 if row:
                del row[rng.randrange(len(row))]
            case 2:
                row.append("more")
            case 3 if rows:
                rows.remove(row)
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


class Target:
    """A file in a folder, what damages it, and what reads it."""

    def __init__(
        self,
        source: str | Callable[[pathlib.Path], None],
        file: str,
        read: Callable[[pathlib.Path], None],
        *structured: Callable[[bytes, random.Random], bytes],
    ):
        self.source, self.file, self.read, self.structured = source, file, read, structured

    def prepare(self, folder: pathlib.Path) -> None:
        if callable(self.source):
            folder.mkdir()
            self.source(folder)
        else:
            shutil.copytree(EXAMPLES / self.source, folder)

    def case(self, folder: pathlib.Path, original: bytes, number: int) -> None:
        """Damages the file and reads it."""
        rng = random.Random(number)
        mutate = rng.choice((mutate_bytes, *self.structured * 2))
        (folder / self.file).write_bytes(mutate(original, rng))
        self.read(folder)


def _generate_from(folder: pathlib.Path) -> None:
    """Loads a gist cache and checks that it fits the model that made it."""
    from gist_jax.inference.checks import check_cache
    from gist_jax.inference.gist_cache import GistCache

    gists = GistCache.load(folder / "two.gist.safetensors")
    repr(gists), gists[0], gists.nbytes
    for config, origin in _fitting():
        check_cache(gists, origin, config, len(gists))


@functools.cache
def _fitting() -> list[Any]:
    from gist_jax.inference.gist_cache import GistCache
    from gist_jax.workdir import read_model

    config = read_model(EXAMPLES / "llama" / "workdir").config
    return [(config, GistCache.load(EXAMPLES / "llama" / "two.gist.safetensors").origin)]


def _library(folder: pathlib.Path) -> None:
    from gist_jax.inference.gist_cache import GistCache
    from gist_jax.inference.library import GistLibrary

    gists = GistCache.load(EXAMPLES / "llama" / "two.gist.safetensors")
    GistLibrary(folder / "gists").put({"a": gists[0], "b": gists[1]})


def _read_library(folder: pathlib.Path) -> None:
    from gist_jax.errors import UserError
    from gist_jax.inference.library import GistLibrary

    library = GistLibrary(folder / "gists")
    library.verify()
    for name in list(library)[:5]:
        library.entry(name)
        with contextlib.suppress(UserError):
            library[name]


def _records(folder: pathlib.Path) -> None:
    import pyarrow
    import pyarrow.parquet

    fields = "instruction", "input", "output", "name"
    records = [dict.fromkeys(fields, f"text {i}") for i in range(4)]
    (folder / "x.json").write_text(json.dumps(records))
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    with (folder / "x.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*records[0], "reference", "prediction"])
        writer.writeheader()
        writer.writerows(record | dict(reference="c", prediction="d") for record in records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "x.parquet")
    result = dict.fromkeys(("split", "instruction", "input", "reply", "reason"), "a")
    result |= {"choice": "a", "swapped": False}
    judged = {"format": 1, "names": {"a": "x", "b": "y"}, "scores": {}, "results": [result] * 2}
    (folder / "judged.json").write_text(json.dumps(judged))


def _texts(folder: pathlib.Path) -> None:
    (folder / "x.jsonl").write_text('{"text": "A cup of tea."}\n{"text": "Two cups."}\n')


def _documents(folder: pathlib.Path) -> None:
    from gist_jax.data.sources import load_data

    for split in load_data(f"json:{folder / 'x.jsonl'}", documents=True).splits.values():
        list(split)


def _requests(folder: pathlib.Path) -> None:
    from gist_jax.data.files import read_records
    from gist_jax.errors import UserError
    from gist_jax.inference.request_files import request_of
    from gist_jax.inference.requests import Request

    for record in read_records(folder / "x.jsonl"):
        with contextlib.suppress(UserError):
            request_of(record, Request("", None, "x"))


def _call(name: str, *rest: Any, file: str = "") -> Callable[[pathlib.Path], None]:
    """A reader: a function by the name of its module and its own, of a file in the folder or of that."""
    module, _, function = name.rpartition(".")

    def read(folder: pathlib.Path) -> None:
        found = getattr(__import__(module, fromlist=[function]), function)
        made = found(folder / file if file else folder, *rest)
        if hasattr(made, "encode"):
            made.encode("a b <GIST> ü")

    return read


def _checkpoint(folder: pathlib.Path) -> None:
    from gist_jax.data.tokenization import load_tokenizer
    from gist_jax.interop.huggingface import Checkpoint

    tokenizer = load_tokenizer(folder)
    checkpoint = Checkpoint(folder)
    checkpoint.gist_settings(tokenizer)
    for weight in checkpoint.weights:
        weight.read(checkpoint.tensors, tuple(slice(0, n) for n in weight.shape))


def _adapter(folder: pathlib.Path) -> None:
    from gist_jax.workdir import read_params

    read_params(folder)


def _source(kind: str) -> Callable[[pathlib.Path], None]:
    def read(folder: pathlib.Path) -> None:
        from gist_jax.data.sources import first, load_data

        form = "csv" if kind == "csv" else "json"
        for split in load_data(f"{form}:{folder / f'x.{kind}'}").splits.values():
            first(split, 2)

    return read


READERS = "gist_jax.data.files.read_records", "gist_jax.evaluation.predictions.read_predictions"
HF, TRAINED = "llama/export", "llama/workdir"
read_tokenizer = _call("gist_jax.data.tokenization.load_tokenizer")
read_model = _call("gist_jax.workdir.read_model")
read_metrics = _call("gist_jax.workdir.read_metrics")
read_judgements = _call("gist_jax.evaluation.judgements.read_judgements", file="judged.json")
read_records, read_predictions = (
    _call(name, file=file) for name, file in zip(READERS, ("x.parquet", "x.csv"), strict=True)
)
TARGETS = {
    "gist": Target("llama", "two.gist.safetensors", _generate_from, mutate_safetensors),
    "library": Target(_library, "gists/index.json", _read_library, mutate_json_file),
    "model.json": Target(TRAINED, "model.json", read_model, mutate_json_file),
    "metrics": Target(TRAINED, "metrics.jsonl", read_metrics, mutate_json_lines),
    "tokenizer": Target(HF, "tokenizer.json", read_tokenizer, mutate_json_file),
    "tokenizer_config": Target(HF, "tokenizer_config.json", read_tokenizer, mutate_json_file),
    "config.json": Target(HF, "config.json", _checkpoint, mutate_json_file),
    "weights": Target(HF, "model.safetensors", _checkpoint, mutate_safetensors),
    "adapter": Target("llama/adapter", "adapter.safetensors", _adapter, mutate_safetensors),
    "json": Target(_records, "x.json", _source("json"), mutate_json_file),
    "jsonl": Target(_records, "x.jsonl", _source("jsonl"), mutate_json_lines),
    "documents": Target(_texts, "x.jsonl", _documents, mutate_json_lines),
    "csv": Target(_records, "x.csv", _source("csv"), mutate_csv),
    "parquet": Target(_records, "x.parquet", read_records),
    "requests": Target(_records, "x.jsonl", _requests, mutate_json_lines),
    "predictions": Target(_records, "x.csv", read_predictions, mutate_csv),
    "judgements": Target(_records, "judged.json", read_judgements, mutate_json_file),
}


def failures(name: str, folder: pathlib.Path, numbers: Iterable[int]) -> Iterator[tuple[int, Exception]]:
    """The cases that end in anything but a UserError or a result."""
    import logging

    from gist_jax.errors import UserError

    logging.disable(logging.ERROR)  # of other libraries, about every file
    target = TARGETS[name]
    target.prepare(folder)
    original = (folder / target.file).read_bytes()
    (folder / target.file).write_bytes(original)
    target.read(folder)  # as it is it can be read
    for number in numbers:
        try:
            target.case(folder, original, number)
        except UserError as error:
            if len(str(error)) > 900 or "\n" in str(error):
                yield number, error
        except Exception as error:
            yield number, error


def main() -> None:
    """Runs the command."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--seconds", type=float, default=300.0, help="of the processor, for every target"
    )
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("targets", nargs="*")
    options = arguments.parse_args()
    bad = 0
    for name in options.targets or TARGETS:
        counted, seen = itertools.count(options.seed), set()
        end = time.process_time() + options.seconds
        numbers = itertools.takewhile(lambda _, end=end: time.process_time() < end, counted)
        with tempfile.TemporaryDirectory() as base:
            for number, error in failures(name, pathlib.Path(base) / "x", numbers):
                frames = traceback.extract_tb(error.__traceback__)
                last = ([frame for frame in frames if "gist_jax/" in frame.filename] or frames)[-1]
                if (type(error), last.lineno) not in seen:
                    seen.add((type(error), last.lineno))
                    bad += 1
                    where = f"{last.filename}:{last.lineno}"
                    print(f"{name} {number}: {type(error).__name__} at {where}: {str(error)[:200]}")
        print(f"{name}: {next(counted) - options.seed - 1} cases", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
