"""Libraries of gists: many readers, one writer at a time, and processes that are killed."""

import dataclasses
import functools
import json
import multiprocessing
import pathlib
import threading
import time
import uuid

import jax
import numpy as np
import pytest
from commands import INPUTS, INSTRUCTIONS, command, mistake
from processes import printed_random

import gist_jax
from gist_jax import library as library_command
from gist_jax.errors import UserError
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.library import GistLibrary
from gist_jax.io import write_json

NAMED = {"last": INSTRUCTIONS[0], "animal": INSTRUCTIONS[1]}


@pytest.fixture(scope="module")
def workdir():
    return pathlib.Path(__file__).parent / "examples" / "llama" / "workdir"


@pytest.fixture(scope="module")
def lm(workdir):
    return gist_jax.load(workdir)


def equal(a: GistCache, b: GistCache) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def test_a_library_keeps_what_was_compressed(lm, tmp_path):
    library, other = GistLibrary(tmp_path / "gists"), GistLibrary(tmp_path / "gists")
    assert len(other) == 0 and "last" not in other
    library.add(NAMED, lm)
    assert list(other) == ["last", "animal"] and repr(other).endswith("2 gists)")
    assert other.entry("last").instruction == INSTRUCTIONS[0] and other.entry("last").date.startswith(
        "20"
    )
    gists = lm.compress(INSTRUCTIONS)
    for i, name in enumerate(NAMED):
        assert other[name].origin == lm.origin and other[name].instructions == (NAMED[name],)
        equal(other[name], gists[i])
        assert other[name] is other[name]  # stays on the device
    assert lm.generate(other["last"], inputs=INPUTS) == lm.generate(gists[0], inputs=INPUTS)
    library.add({"last": "Say red."}, lm)  # another instruction under the same name
    assert other["last"].instructions == ("Say red.",) and len(other) == 2
    library.remove("animal")
    assert list(other) == ["last"] and len(list((tmp_path / "gists" / "gists").iterdir())) == 1
    with pytest.raises(UserError, match="has no gist 'animal'"):
        other["animal"]
    with pytest.raises(UserError, match="gists of one row, but 'two' has 2"):
        library.put({"two": gists})


def test_gists_of_another_model_are_refused_or_made_anew(lm, tmp_path):
    library = GistLibrary(tmp_path)
    library.add(NAMED, lm)

    foreign = library["last"]
    foreign = dataclasses.replace(foreign, origin=dataclasses.replace(foreign.origin, base="other"))
    library.put({"last": foreign})
    with pytest.raises(UserError, match="made by another model"):
        lm.generate(library["last"], inputs=INPUTS)
    assert library.renew(lm) == ["last"]
    assert lm.generate(library["last"], inputs=INPUTS)
    assert library.renew(lm) == []


def test_damaged_and_foreign_files(lm, tmp_path):
    """One sentence for each, and the rest stays readable."""
    folder = tmp_path / "gists"
    library = GistLibrary(folder)
    library.add({**NAMED, "red": "Say red."}, lm)
    file = folder / "gists" / library.entry("last").file
    file.write_bytes(file.read_bytes()[:100])
    (folder / "gists" / "foreign.txt").write_text("what is this?")
    (folder / "gists" / library.entry("animal").file).unlink()
    opened = GistLibrary(folder)
    for name in ("last", "animal"):
        with pytest.raises(UserError, match="cannot read the gist cache"):
            opened[name]
    assert opened["red"].instructions == ("Say red.",)
    assert sorted(opened.verify()) == ["animal", "last"]
    assert not (folder / "gists" / "foreign.txt").exists()
    index = (folder / "index.json").read_text()
    for wrong, sentence in (
        ("{", "cannot read"),
        (json.dumps({"format": 9}), "not an index of format 1"),
        (json.dumps({"format": 1, "gists": {"a": {"b": 1}}}), "is no index of gists"),
    ):
        (folder / "index.json").write_text(wrong)
        with pytest.raises(UserError, match=sentence):
            GistLibrary(folder)
    (folder / "index.json").write_text(index)
    assert len(GistLibrary(folder)) == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is no folder of gists"):
        GistLibrary(tmp_path / "file")
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "gists").write_text("")  # in the way of its folder, as a full disk would be
    with pytest.raises(UserError, match="cannot write into the library"):
        GistLibrary(tmp_path / "blocked").put({"red": opened["red"]})


def test_ten_thousand_gists_open_in_a_second(tmp_path):
    entry = {"file": "x.gist.safetensors", "instruction": "Say the last word. " * 20, "date": "2026"}
    gists = {f"gist {i}": entry for i in range(10_000)}
    write_json(tmp_path / "index.json", {"format": 1, "gists": gists})
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert len(GistLibrary(tmp_path)) == 10_000
        times.append(time.perf_counter() - start)
    assert min(times) < 1


def test_what_was_used_last_stays(lm, tmp_path):
    """Within the limits of the device and of the host."""
    size = lm.compress(INSTRUCTIONS[:1]).nbytes
    library = GistLibrary(tmp_path, device_bytes=size, host_bytes=2 * size)
    library.add({**NAMED, "red": "Say red."}, lm)
    first = library["last"]
    assert library["last"] is first
    library["animal"]
    (tmp_path / "gists" / library.entry("last").file).rename(tmp_path / "away")
    equal(library["last"], first)  # from the host's memory
    library["animal"], library["red"]
    with pytest.raises(UserError, match="cannot read the gist cache"):
        library["last"]


def test_the_command(workdir, tmp_path, monkeypatch, capsys):
    where, model = f"--library={tmp_path}/gists", f"--model={workdir}"
    file = tmp_path / "x.jsonl"
    records = [{"name": name, "instruction": text} for name, text in NAMED.items()]
    file.write_text("\n".join(map(json.dumps, records)))
    run = functools.partial(command, library_command, monkeypatch, capsys)
    assert "2 added, 2 in all" in run("add", where, model, f"--instructions={file}")
    one = "--name=red", "--instruction=Say red."
    assert "1 added, 3 in all" in run("add", where, model, *one)
    assert run("list", where).splitlines()[3].endswith("Say red.")
    assert "3 gists, all sound" in run("verify", where)
    assert "1 removed, 2 left" in run("remove", where, "--name=last")
    wrong = functools.partial(mistake, library_command, monkeypatch, capsys)
    assert "has no gist 'last'" in wrong("remove", where, "--name=last")
    assert "give --name and --instruction" in wrong("add", where, model)
    file.write_text("\n".join(map(json.dumps, [records[0], records[0]])))
    assert "once more" in wrong("add", where, model, f"--instructions={file}")
    next((tmp_path / "gists" / "gists").iterdir()).write_bytes(b"")
    assert "1 of 2 gists cannot be used" in wrong("verify", where)


def write_for_ever(folder: str, cache: str, log: str) -> None:
    """Puts gists under new names, and notes each name when `put` has returned."""
    library, gists = GistLibrary(folder), GistCache.load(cache)
    with open(log, "a") as noted:
        while True:
            name = uuid.uuid4().hex
            library.put({name: gists, f"{name} again": gists})
            noted.write(f"{name}\n")
            noted.flush()


@pytest.mark.slow
def test_writers_are_killed(lm, tmp_path):
    """A hundred times, while two readers look at all there is."""
    cache, log, folder = tmp_path / "x.gist.safetensors", tmp_path / "log", tmp_path / "gists"
    lm.compress(INSTRUCTIONS[:1]).save(cache)
    log.write_text("")
    rng, stopped, problems = printed_random(), threading.Event(), []

    def read():
        library = GistLibrary(folder, device_bytes=0, host_bytes=0)
        while not stopped.is_set():
            try:
                for name in list(library)[-20:]:
                    assert len(library[name]) == 1
                    assert name.split()[0] in library and f"{name.split()[0]} again" in library
            except Exception as error:
                problems.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gist_jax.inference.library"])
    for _ in range(100):
        writer = context.Process(target=write_for_ever, args=(str(folder), str(cache), str(log)))
        writer.start()
        before = log.stat().st_size
        deadline = time.monotonic() + 30
        while log.stat().st_size == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        writer.kill()
        writer.join()
        library = GistLibrary(folder)
        assert all(name in library for name in log.read_text().split("\n")[:-1])
    stopped.set()
    for reader in readers:
        reader.join()
    assert not problems, problems
    assert len(log.read_text().split()) >= 100 and not GistLibrary(folder).verify()
