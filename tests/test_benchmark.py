"""The benchmark from its command to its files, and what its results rest on."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import command, mistake
from tiny import TINY

from gist_jax.benchmark import __main__ as benchmark
from gist_jax.benchmark import measure, serving
from gist_jax.benchmark.costs import costs
from gist_jax.benchmark.equivalence import agreement, logits_after
from gist_jax.benchmark.latency import covered, interleaved, quotient, saving
from gist_jax.benchmark.measure import BenchmarkModel
from gist_jax.benchmark.rows import reuses
from gist_jax.benchmark.workload import MODES, Workload, make_cache
from gist_jax.models import registry
from gist_jax.models.stack import unstacked

llama_alone = pytest.mark.parametrize("model_family", ["llama"], indirect=True)
SMALL = ("--config=tests/helpers/quick.py", "--config.model.vocab_size=64")


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_runs_are_interleaved():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = interleaved(runs, 20, lambda: calls.append("round"))
    rounds = "".join(x if x != "round" else " " for x in calls[3:]).split()  # without the first ones
    assert [sorted(x) for x in rounds] == [["a", "b", "c"]] * 20
    assert len(set(rounds)) > 2  # in no fixed order
    assert {x.shape for x in seconds.values()} == {(20,)} and all(
        (x > 0).all() for x in seconds.values()
    )


def test_savings_are_of_pairs():
    """What slows both of a pair does not widen the interval of their quotient."""
    rng = np.random.default_rng(1)
    slow = rng.uniform(1, 5, 400)
    base, other = slow, 0.6 * slow * rng.normal(1, 0.01, 400)
    value, low, high = saving(base, other)
    assert value == pytest.approx(0.4, abs=0.02) and low < value < high
    unpaired = quotient(rng.permutation(other), base)
    assert high - low < unpaired[2] - unpaired[1]
    assert saving(base, base) == (0, 0, 0)
    worse, *limits = saving(other, base)
    assert worse == pytest.approx(1 - 1 / 0.6, abs=0.04) and sorted(limits) == limits


def test_busy_time():
    """Operations overlap, and stand inside of others."""
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert covered([]) == 0


def test_reuses():
    assert reuses(10, 7, 3) == 3 and reuses(1, 7, 3) == 1
    assert reuses(10, 3, 3) is None and reuses(10, 2, 3) is None


@pytest.fixture(scope="module")
def benchmark_model(model_family):
    config = TINY[model_family]
    params = unstacked(registry.init(config, jax.random.key(3)))
    return BenchmarkModel(config, params, gist_token=17)


WORKLOAD = Workload(instruction=9, input=5, output=6, batch=3, gist_tokens=2, one_instruction=False)


@pytest.mark.parametrize(
    ("model_family", "shared"), [("llama", True), ("t5", False)], indirect=["model_family"]
)
def test_all_modes_write_the_same(benchmark_model, shared):
    workload = WORKLOAD._replace(one_instruction=shared)
    counts = {mode: costs(benchmark_model.config, workload, mode, "float32") for mode in MODES}
    ticks = []
    rows = measure.measure(benchmark_model, workload, 3, lambda: ticks.append(1))
    assert [row["mode"] for row in rows] == list(MODES) and len(ticks) == 3
    for row in rows:
        assert row["agreement"] == 1
        assert row["total_seconds"] > 0
        assert 0 < row["first_seconds_low"] <= row["first_seconds"] <= row["first_seconds_high"]
        assert row["token_bytes_compiled"] >= row["token_bytes"] > 0
        assert row["peak_bytes"] > counts["none"].next_token.bytes / 2
        assert (row["build_seconds"] is None) == (row["mode"] == "none")
    none, prompt, gist = rows
    assert none["first_saved"] is None and prompt["first_saved_vs_prompt_cache"] is None
    assert gist["first_saved_low"] <= gist["first_saved"] <= gist["first_saved_high"]
    assert gist["prompts"] > prompt["prompts"] > 0
    assert gist["cache_bytes"] < prompt["cache_bytes"]


def test_caches_have_the_bytes_of_their_costs(benchmark_model):
    tokens = jnp.asarray(measure._random_tokens(benchmark_model, WORKLOAD))
    assert (tokens[:, 9:11] == 17).all() and (tokens == 17).sum() == 2 * 3
    assert len({tuple(row) for row in tokens.tolist()}) == 3
    for mode in MODES[1:]:
        made = make_cache(
            benchmark_model.params,
            tokens[:, :11],
            jnp.ones((3, 11), jnp.int32),
            config=benchmark_model.config,
            gist_token=17,
            mode=mode,
            num_gists=2,
        )
        assert made.nbytes == 3 * costs(benchmark_model.config, WORKLOAD, mode, "float32").cache_bytes
        assert (getattr(made, "cross_kv", None) is not None) == (
            mode == "prompt_cache" and "encoder" in benchmark_model.params
        )


@llama_alone
def test_other_tokens_are_refused(benchmark_model, monkeypatch):
    """A cache of another instruction gives other tokens."""

    def of_another(params, tokens, segment, **settings):
        return make_cache(params, (tokens + 1) % 16, segment, **settings)

    monkeypatch.setattr(measure, "make_cache", of_another)
    with pytest.raises(ValueError, match="the cache does not give what the prompt gives"):
        measure.measure(benchmark_model, WORKLOAD, 1, lambda: None)


def test_ties_may_part(benchmark_model):
    logits = np.array([[1.0, 3.0, 3.0 - 1e-6, 0.0]])
    expected, written = np.array([[2, 1, 0]]), np.array([[2, 2, 3]])
    asked = []

    def after(number):
        asked.append(number)
        return logits

    assert agreement(expected, written, after) == pytest.approx(1 / 3)
    assert asked == [1]  # what follows a tie differs for a reason
    assert agreement(expected, expected, after) == 1
    with pytest.raises(ValueError, match="token 0 of row 0 is 3, not 1, whose logit differs by 3"):
        agreement(np.array([[1]]), np.array([[3]]), after)
    assert agreement(np.array([[1, 1]]), np.array([[3, 1]])) == 0.5

    tokens = jnp.asarray(measure._random_tokens(benchmark_model, WORKLOAD))
    settings = dict(config=benchmark_model.config, gist_token=17)
    output = np.asarray(
        measure._prepared(benchmark_model, WORKLOAD, "none", np.asarray(tokens)).generate()
    )
    for number in (0, 3):
        found = logits_after(
            benchmark_model.params,
            tokens,
            jnp.ones_like(tokens),
            jnp.asarray(output[:, :number]),
            **settings,
        )
        assert (found.argmax(-1) == output[:, number]).all()


def test_times_of_a_shape(tmp_path, monkeypatch, capsys):
    sizes = "--instruction=7,9", "--input=5", "--output_tokens=4", "--batch=2", "--rounds=2"
    arguments = *SMALL, "--random_weights", *sizes, f"--output={tmp_path / 'made'}"
    text = command(benchmark, monkeypatch, capsys, *arguments)
    assert "input 5, output 4, batch 2, gist tokens 1" in text and text.count("gist cache") == 2
    made = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert made == [
        "break_even.png",
        "index.html",
        "memory.png",
        "results.csv",
        "results.json",
        "saving.png",
    ]
    rows = table(tmp_path / "made" / "results.csv")
    assert len(rows) == 2 * 3 and {row["agreement"] for row in rows} == {"1.0"}
    written = json.loads((tmp_path / "made" / "results.json").read_text())
    assert written["environment"]["versions"].count(jax.__version__) >= 1
    assert written["environment"]["dtype"] == "float32"
    assert [row["mode"] for row in written["rows"]] == [row["mode"] for row in rows]


@llama_alone
def test_times_of_a_model(workdir, lm, tmp_path, monkeypatch, capsys):
    sizes = "--instruction=7", "--input=5", "--output_tokens=2", "--batch=2", "--rounds=2"
    options = f"--model={workdir}", *sizes, "--dtype=bfloat16", f"--output={tmp_path}"
    command(benchmark, monkeypatch, capsys, *options)
    rows = table(tmp_path / "results.csv")
    workload = Workload(7, 5, 2, 2, 1, False)
    for row in rows:
        count = costs(lm.config, workload, row["mode"], "bfloat16")
        assert int(row["first_flops"]) == count.first_token.flops
        assert int(row["cache_bytes"]) == count.cache_bytes


def test_lengths(tmp_path, monkeypatch, capsys):
    """The input's columns stay, and the instruction may be empty."""
    (tmp_path / "lengths.csv").write_text(
        "id,num_prompt_tokens,num_input_tokens,num_gist_tokens\na,58,34,1\nb,58,34,24\n"
    )
    output = tmp_path / "out.csv"
    command(
        benchmark, monkeypatch, capsys, *SMALL, f"--lengths={tmp_path}/lengths.csv", f"--output={output}"
    )
    rows = table(output)
    columns = ["id", "num_prompt_tokens", "num_input_tokens", "num_gist_tokens", "mode"]
    assert list(rows[0])[:8] == [*columns, "flops", "bytes_accessed", "cache_bytes"]
    assert [(row["id"], row["mode"]) for row in rows] == [(x, mode) for x in "ab" for mode in MODES]
    none, prompt, gist, *others = rows
    assert float(gist["flops"]) < float(prompt["flops"]) < float(none["flops"])
    assert others[1]["flops"] == others[2]["flops"] == prompt["flops"]
    assert int(gist["cache_bytes"]) == 4 * 2 * 2 * 16
    assert int(prompt["cache_bytes"]) == 24 * 4 * 2 * 2 * 16


def test_estimates_of_accelerators(tmp_path, monkeypatch, capsys):
    """Bandwidth limits a chip that writes a token at a time; what does not fit has no time."""
    arguments = "--config=llama_7b", "--instruction=9", "--batch=1", f"--output={tmp_path}"
    text = command(benchmark, monkeypatch, capsys, *arguments)
    assert "A100-80GB" in text
    rows = table(tmp_path / "results.csv")
    weights = 2 * (6_738_423_808 + 2 * 4096 - 32_001 * 4096)
    for row in rows:
        assert float(row["bytes_accessed"]) == pytest.approx(weights, rel=0.005)
        assert float(row["H200_token_seconds"]) == pytest.approx(weights / 4.8e12, rel=0.01)
    room = 141 * 2**30 - 2 * 6.74e9
    assert int(rows[2]["cache_bytes"]) == 2 * 2 * 32 * 4096
    assert int(rows[2]["H200_prompts"]) == pytest.approx(room / int(rows[2]["cache_bytes"]), rel=0.01)
    arguments = *arguments[:2], "--batch=200", arguments[-1]
    command(benchmark, monkeypatch, capsys, *arguments)
    for row in table(tmp_path / "results.csv"):
        assert row["v5e_first_seconds"] == "" and float(row["A100-80GB_first_seconds"]) > 0


MISTAKES = {
    ("--config=quickstart",): "config.model.vocab_size is 0",
    ("--config=nowhere.py",): "there is no config file nowhere.py",
    (*SMALL, "--config.model.layers=3"): "unknown config field",
    (*SMALL, "--instruction=0"): "has a number below 1",
    (*SMALL, "--batch=x"): "--batch",
    (*SMALL, "--instruction=4096"): "but the model has only",
    (*SMALL, "--rounds=0"): "--rounds must be at least 1",
    (*SMALL, "--lengths=nowhere.csv", "--output=x.csv"): "cannot read nowhere.csv",
    (*SMALL, "--lengths=LICENSE", "--output=x.csv"): "has no column num_",
    (*SMALL, "--lengths=LICENSE"): "there must be --output=NAME.csv",
    ("--model=nowhere/at/all", "--random_weights"): "go with --config",
    ("--model=demo", "rounds"): "unrecognized argument rounds",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda x: x[-1])
def test_mistakes(arguments, tmp_path, monkeypatch, capsys):
    output = () if any("--output" in x for x in arguments) else (f"--output={tmp_path / 'made'}",)
    if "--lengths=LICENSE" in arguments:
        output = output if "--output=x.csv" not in arguments else ()
    assert MISTAKES[arguments] in mistake(benchmark, monkeypatch, capsys, *arguments, *output)
    assert not (tmp_path / "made").exists()


def test_lengths_that_are_none(tmp_path, monkeypatch, capsys):
    file = tmp_path / "lengths.csv"
    for line, sentence in {
        "9,8,2": "the prompt is shorter",
        "9,x,1": "no whole numbers",
        "9,0,1": "input",
    }.items():
        file.write_text(f"num_prompt_tokens,num_input_tokens,num_gist_tokens\n{line}\n")
        arguments = *SMALL, f"--lengths={file}", f"--output={tmp_path}/out.csv"
        assert sentence in mistake(benchmark, monkeypatch, capsys, *arguments)
    assert list(tmp_path.iterdir()) == [file]


def test_serving(tmp_path, monkeypatch, capsys):
    """Requests in slots and in batches write the same tokens, and both are in the table."""
    output = tmp_path / "table.csv"
    arguments = [*SMALL, f"--output={output}", "--requests=6", "--gists=2"]
    monkeypatch.setattr(serving, "INSTRUCTION", 8)
    monkeypatch.setattr(serving, "INPUTS", (2, 9))
    monkeypatch.setattr(serving, "OUTPUTS", (1, 9))
    printed = command(serving, monkeypatch, capsys, *arguments, "--batch=2", "--slots=2", "--rounds=1")
    rows = {row["requests"]: row for row in table(output)}
    assert list(rows) == ["one by one", "batches of 2", "2 slots"]
    assert all(name in printed for name in rows)
    assert float(rows["one by one"]["one_by_one"]) == 1 == float(rows["batches of 2"]["best_batch"])
    one, slots = (float(rows[name]["seconds"]) for name in ("one by one", "2 slots"))
    assert float(rows["2 slots"]["one_by_one"]) == pytest.approx(one / slots)
