"""Many gist caches in one folder, by name.

    index.json     format version, and of every name: its file, its instruction, and when it was made
    gists/         a gist cache file each, see `GistCache.save`
    .lock          held by whoever changes the index

A gist is written beside and renamed, and stands in the index, which is replaced whole, when `add`
returns. So readers, of which there may be many, see what was before or what is after, and a writer that
is killed leaves at most files that no name points to, which `verify` removes.
"""

import collections
import contextlib
import dataclasses
import datetime
import pathlib
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from filelock import FileLock
from tqdm import tqdm

from gist_jax.errors import UserError, shortened
from gist_jax.inference.gist_cache import THEN, GistCache
from gist_jax.inference.language_model import LanguageModel
from gist_jax.io import Path, read_json, write_json

FORMAT = 1
BATCH = 32  # instructions that are compressed at a time
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the index says of a gist."""

    file: str
    instruction: str
    date: str  # ISO 8601, UTC


class GistLibrary(Mapping[str, GistCache]):
    """Named gist caches in a folder, safe for threads, and for processes that read and write it.

    `library[name]` is a gist cache of one row, on the device. What was used last stays there and in the
    host's memory, up to so many bytes of each.
    """

    def __init__(self, path: Path, *, device_bytes: int = _GIB, host_bytes: int = 4 * _GIB) -> None:
        """Opens a library; there need not be one yet.

        Raises:
          UserError: if there is something else at the path, or the index cannot be read.
        """
        self.path = pathlib.Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{path} is no folder of gists")
        self._lock = threading.RLock()
        self._seen: tuple[int, int] | None = None  # of the index file that was read
        self._entries: dict[str, Entry] = {}
        self._device, self._host = _Recent(device_bytes), _Recent(host_bytes)
        self._refresh()

    def __len__(self) -> int:
        return len(self._current())

    def __iter__(self) -> Iterator[str]:
        return iter(self._current())

    def __contains__(self, name: object) -> bool:
        return name in self._current()

    def __repr__(self) -> str:
        return f"GistLibrary({self.path}, {len(self)} gists)"

    def entry(self, name: str) -> Entry:
        """What the index says of a gist.

        Raises:
          UserError: if there is none of that name.
        """
        entries = self._current()
        if name not in entries:
            raise UserError(f"the library {self.path} has no gist {name!r}")
        return entries[name]

    def __getitem__(self, name: str) -> GistCache:
        for _ in range(2):  # it may be replaced while it is read
            entry = self.entry(name)
            with self._lock:
                if (found := self._device.get(entry.file)) is not None:
                    return found
                host = self._host.get(entry.file)
            try:
                gists = jax.device_put(host) if host else GistCache.load(self._file(entry))
            except UserError:
                if self.entry(name).file != entry.file:
                    continue
                raise
            with self._lock:
                if host is None:
                    self._host.put(entry.file, jax.tree.map(np.asarray, gists))
                self._device.put(entry.file, gists)
            return gists
        raise UserError(f"the gist {name!r} of {self.path} changes too often to be read")

    def add(self, instructions: Mapping[str, str], lm: LanguageModel) -> None:
        """Compresses instructions, and keeps each under its name; of a name there was, the new one.

        Raises:
          UserError: if the model cannot compress one of them, or the folder cannot be written. What was
            added before stays.
        """
        names = list(instructions)
        with tqdm(total=len(names), desc="compressing", unit="gist", leave=False) as bar:
            for start in range(0, len(names), BATCH):
                chosen = names[start : start + BATCH]
                gists = lm.compress([instructions[name] for name in chosen])
                self.put({name: gists[i] for i, name in enumerate(chosen)})
                bar.update(len(chosen))

    def put(self, gists: Mapping[str, GistCache]) -> None:
        """Keeps gist caches of one row each under their names.

        Raises:
          UserError: if one has several rows, or the folder cannot be written.
        """
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        new = {}
        with self._writing():  # the files too, or `verify` could take them for nobody's
            for name, cache in gists.items():
                if not name or len(cache) != 1:
                    raise UserError(f"a library keeps gists of one row, but {name!r} has {len(cache)}")
                text = cache.instructions[0] if cache.instructions else ""
                entry = Entry(f"{uuid.uuid4().hex}.gist.safetensors", text, date)
                cache.save(self._file(entry))
                new[name] = entry
            self._change(lambda entries: {**entries, **new})

    def remove(self, *names: str) -> None:
        """Removes gists.

        Raises:
          UserError: if there is none of such a name; then none is removed.
        """
        for name in names:
            self.entry(name)
        with self._writing():
            self._change(lambda entries: {k: x for k, x in entries.items() if k not in names})

    def renew(self, lm: LanguageModel) -> list[str]:
        """Compresses anew, from their instructions, what another model, tokenizer or template made.

        Returns:
          The names of what was compressed.
        """
        old = {name: self.entry(name).instruction for name in self if self[name].origin != lm.origin}
        self.add({name: text for name, text in old.items() if THEN not in text}, lm)
        for name, text in old.items():
            if THEN not in text:
                continue
            first, *rest = text.split(THEN)
            gists = lm.compress(first)
            for instruction in rest:
                gists = lm.compress(instruction, after=gists)
            self.put({name: gists})
        return list(old)

    def verify(self) -> dict[str, str]:
        """Reads every file, and removes those that no name points to.

        Returns:
          What is wrong, by name; empty if all is sound.
        """
        problems = {}
        for name in self:
            try:
                found = GistCache.load(self._file(self.entry(name)))
                if len(found) != 1:
                    problems[name] = f"it has {len(found)} rows"
            except UserError as error:
                problems[name] = str(error)
        with self._writing():
            known = {entry.file for entry in self._read().values()}
            for file in (self.path / "gists").glob("*"):
                if file.name not in known:
                    file.unlink(missing_ok=True)
        return problems

    def _file(self, entry: Entry) -> pathlib.Path:
        return self.path / "gists" / entry.file

    def _change(self, change: Callable[[dict[str, Entry]], dict[str, Entry]]) -> None:
        """Replaces the index, and removes files that it named before; inside of `_writing`."""
        before = self._read()
        after = change(before)
        listed = {name: dataclasses.asdict(entry) for name, entry in after.items()}
        write_json(self.path / "index.json", {"format": FORMAT, "gists": listed})
        kept = {entry.file for entry in after.values()}
        for entry in before.values():
            if entry.file not in kept:
                self._file(entry).unlink(missing_ok=True)

    def _current(self) -> dict[str, Entry]:
        """The index as it is now, a dict that nobody changes."""
        with self._lock:
            self._refresh()
            return self._entries

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Lets one writer in at a time, and says in a sentence that the folder cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._lock, FileLock(self.path / ".lock"):
                yield
        except OSError as error:
            raise UserError(f"cannot write into the library {self.path}: {shortened(error)}") from None

    def _refresh(self) -> None:
        """Reads the index if it is not the one that was read."""
        try:
            found = (self.path / "index.json").stat()
        except FileNotFoundError:
            self._entries, self._seen = {}, None
            return
        seen = found.st_ino, found.st_mtime_ns
        if seen != self._seen:
            self._entries, self._seen = self._read(), seen

    def _read(self) -> dict[str, Entry]:
        path = self.path / "index.json"
        if not path.exists():
            return {}
        index = read_json(path)
        if index.get("format") != FORMAT:
            raise UserError(f"{path} is not an index of format {FORMAT}")
        try:
            entries = {name: Entry(**fields) for name, fields in index["gists"].items()}
            for entry in entries.values():
                if not all(isinstance(value, str) for value in dataclasses.astuple(entry)):
                    raise TypeError("an entry has a field that is no text")
                if pathlib.PurePath(entry.file).name != entry.file:
                    raise ValueError(f"the file {entry.file!r} is not one of its folder")
            return entries
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no index of gists: {shortened(error)}") from None


class _Recent:
    """What was used last, up to so many bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: collections.OrderedDict[str, GistCache] = collections.OrderedDict()

    def get(self, key: str) -> GistCache | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: str, gists: GistCache) -> None:
        if key not in self._kept:
            self._kept[key] = gists
            self._bytes += gists.nbytes
        while self._bytes > self._limit and self._kept:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
