"""Rows written in slots, of which others begin and end, are those that `generate` writes alone."""

import dataclasses

import jax
import numpy as np
import pytest

from gist_jax.inference.continuous import Programs, Row, write_rows
from gist_jax.inference.decode import generate
from gist_jax.inference.prefill import compress
from gist_jax.inference.sampling import make_sampling
from gist_jax.models import registry
from gist_jax.models.stack import unstacked
from gist_jax.sharding import make_mesh, param_shardings

EOS, GIST, LONGEST = 2, 40, 48


@pytest.fixture(scope="module")
def programs(tiny):
    config, params = tiny
    return Programs(unstacked(params), config, "gist", GIST, EOS, 0, None, None)


def caches(programs, count: int, k: int):
    """Gist caches of one row each, of instructions of different lengths."""
    rng = np.random.default_rng(k)
    tokens = np.zeros((count, 12), np.int32)
    for i in range(count):
        tokens[i, : 3 + i] = [*rng.integers(3, GIST, 3 + i - k), *[GIST] * k]
    segment = (tokens > 0).astype(np.int32)
    settings = dict(config=programs.config, gist_token=GIST, num_kept=k)
    made = compress(programs.params, tokens, segment, **settings)
    return [made[i] for i in range(count)]


def alone(programs, row):
    """What `generate` writes of a row, which is to be the first of its seed."""
    ids = np.zeros((1, 32), np.int32)
    ids[0, : len(row.ids)] = row.ids
    output = generate(
        programs.params,
        ids,
        (ids > 0).astype(np.int32),
        row.prefix,
        np.int32(row.limit),
        np.int32(EOS),
        np.uint32(row.seed),
        row.sampling,
        config=programs.config,
        condition=programs.condition,
        gist_token=GIST,
        max_new=LONGEST,
    )[0].tolist()[: row.limit]
    return output[: output.index(EOS) + 1] if EOS in output else output


def rows_of(programs, count: int) -> list[Row]:
    """Rows with gist caches of one or two gist tokens, whole prompts, and different lengths."""
    rng = np.random.default_rng(0)
    gists = [*caches(programs, 4, 1), *caches(programs, 3, 2), None]
    rows = []
    for i in range(count):
        ids = rng.integers(3, GIST, 1 + i * 7 % 19).tolist()
        prefix = gists[i % len(gists)]
        if prefix is None:
            ids = [*rng.integers(3, GIST, 9).tolist(), GIST, *ids]
        sampling = make_sampling(0.5 + i % 3, i % 2 * 5, 0.9) if i % 4 == 3 else None
        rows.append(Row(ids, prefix, int(rng.integers(1, LONGEST)), sampling, seed=i))
    return rows


def test_rows_are_those_of_generate(programs):
    rows = rows_of(programs, 16)
    pulled = []

    def source():
        for row in rows:
            pulled.append(row)
            yield row

    done = []
    for row in write_rows(programs, source(), num_slots=4):
        assert len(pulled) <= len(done) + 1 + 4
        if row.reason:
            done.append(row)
    assert len(done) == len(rows) and done != rows
    for row in rows:
        assert row.output == alone(programs, row)
        assert row.reason == ("eos" if row.output[-1] == EOS else "length")


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_a_mesh_changes_nothing(programs):
    """The rows of slots are split over devices, and parameters lie where the mesh has them."""
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices())
    axes = registry.logical_axes(programs.config, stacked=False)
    shardings = param_shardings(mesh, axes, programs.params)
    split = dataclasses.replace(programs, params=jax.device_put(programs.params, shardings), mesh=mesh)
    alone, together = rows_of(programs, 9), rows_of(programs, 9)
    for number, row in enumerate([*alone, *together]):
        row.limit = min(row.limit, 8 + number % 3)
    done = [row for row in write_rows(split, together, num_slots=4) if row.reason]
    assert len(list(write_rows(programs, alone, num_slots=4))) and len(done) == 9
    assert [row.output for row in together] == [row.output for row in alone]
