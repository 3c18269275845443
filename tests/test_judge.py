"""The judge, over HTTP against a server that misbehaves: nothing is lost, and nothing paid for twice."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys

import pytest
from chat_server import FAULTS, ChatServer, choose_good
from commands import command, mistake
from launch_scripts import wait_for
from processes import ROOT
from test_scores import write

from gist_jax import judge
from gist_jax.evaluation.chat import Replies
from gist_jax.evaluation.judge import read_reply
from gist_jax.evaluation.judgements import by_row, read_judgements, table


@pytest.fixture(autouse=True)
def no_key_and_no_proxy(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def runs(tmp_path, pairs):
    """Files of predictions of two runs, as arguments."""
    for name, column in zip("ab", zip(*pairs, strict=True), strict=True):
        rows = [
            {"instruction": f"Do {i}.", "input": "x" * (i % 2), "reference": "r", "prediction": text}
            for i, text in enumerate(column)
        ]
        write(tmp_path / f"{name}.csv", rows)
    return [f"--predictions={tmp_path}/a.csv", f"--against={tmp_path}/b.csv"]


def arguments(tmp_path, pairs, server, *more):
    where = f"--base_url={server.url}", "--judge=judge", f"--output={tmp_path}/out.json"
    return [*runs(tmp_path, pairs), *where, *more]


def results(tmp_path):
    return json.loads((tmp_path / "out.json").read_text())


PAIRS = [("good", "bad"), ("bad", "good"), ("so so", "that"), ("same", "same ")] * 6
CHOICES = ["a", "b", "tie", "tie"] * 6


@pytest.mark.parametrize("more", [[], ["--both_orders"]])
def test_all_faults(tmp_path, monkeypatch, capsys, more):
    """Each prompt meets some faults before it is answered; the choices are right all the same."""
    faults = {}

    def fault(prompt, number):
        first = faults.setdefault(prompt, len(faults))
        queue = [FAULTS[(first + i) % len(FAULTS)] for i in range(1 + first % 2)]
        return queue[number] if number < len(queue) else ""

    with ChatServer(fault=fault) as server:
        limits = "--timeout=0.5", "--retries=3", "--concurrency=6"
        asked = arguments(tmp_path, PAIRS, server, *limits, *more)
        printed = command(judge, monkeypatch, capsys, *asked)
        prompts = 18 * (2 if more else 1)  # nobody is asked about what is equal
        answered = sum(server.answered.values())
        nulls = sum(fault(prompt, len(times) - 1) == "null" for prompt, times in server.asked.items())
        assert set(server.answered.values()) == {1} and answered == prompts
        assert len(server.asked) == prompts and 2 <= server.most_at_a_time <= 6
        for prompt, times in server.asked.items():
            for number, (before, after) in enumerate(itertools.pairwise(times)):
                least = 0.95 if fault(prompt, number) == "429" else 0.3
                assert after - before >= least
        # A second run asks for nothing.
        again = command(judge, monkeypatch, capsys, *asked)
        assert sum(server.answered.values()) == answered and "\n0 to ask judge for" in again
    judged = read_judgements(tmp_path / "out.json")
    for result, expected in zip(by_row(judged.results), CHOICES, strict=True):
        assert result[1] in (expected, "unread")
    unread = [r for r in results(tmp_path)["results"] if r["choice"] == "unread"]
    assert len(unread) == results(tmp_path)["unread"] == nulls
    if not more:
        assert {r["swapped"] for r in results(tmp_path)["results"]} == {True, False}
    assert results(tmp_path)["usage"]["prompt_tokens"] == 100 * prompts
    row = table(judged.results)[0]
    assert [row["rows"], row["unread"]] == ["24", str(nulls)] and row["win_rate_low"] > 0
    assert f"{row['win_rate']:.2f}  {row['win_rate_low']:.2f} to" in printed


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ('{"reason": "x", "choice": "A"}', "a"),
        ('Sure.\n```json\n{"reason": "x", "choice": "b"}\n```\nI hope that helps!', "b"),
        ('{"choice": "tie", "reason": "both {say} it"}', "tie"),
        ('{"reason": "it says "good"", "choice": "Assistant A"}', "a"),
        ('{"choice": " Tie "}', "tie"),
        ('{"reason": "cut in the mid', "unread"),
        ('{"reason": "x", "choice": "C"}', "unread"),
        ('{"reason": "x", "choice": ""}', "unread"),
        ('{"choice": "A"} or {"choice": "B"}', "unread"),
        ("A", "unread"),
        ("Both are equal.", "unread"),
        ("", "unread"),
    ],
)
def test_replies(reply, choice):
    assert read_reply(reply, swapped=False) == choice
    assert read_reply(reply, swapped=True) == {"a": "b", "b": "a"}.get(choice, choice)


def test_replies_that_cannot_be_read_are_no_ties(tmp_path, monkeypatch, capsys):
    """They count neither for the win rate nor for agreement, are kept, and not asked for again."""

    def reply(prompt):
        return "I cannot say." if "Do 1." in prompt or "Do 2." in prompt else choose_good(prompt)

    with ChatServer(reply=reply) as server:
        asked = arguments(tmp_path, PAIRS[:4] * 2, server)
        printed = command(judge, monkeypatch, capsys, *asked)
        command(judge, monkeypatch, capsys, *asked)
        assert set(server.answered.values()) == {1}
    found = [r["choice"] for r in results(tmp_path)["results"]]
    assert found == ["a", "unread", "unread", "tie", "a", "b", "tie", "tie"]
    assert results(tmp_path)["results"][1]["reply"] == "I cannot say."
    assert results(tmp_path)["scores"] == {"a": 3.5, "b": 2.5} and results(tmp_path)["unread"] == 2
    line = printed.splitlines()[-1].split()
    assert line[1:7] == ["8", "2", "3", "1", "2", f"{100 * 3.5 / 6:.2f}"]
    labels = [{"instruction": f"Do {i}.", "choice": choice} for i, choice in ((0, "a"), (2, "tie"))]
    labels.append({"instruction": "Do 4.", "choice": "B"})
    path = write(tmp_path / "labels.csv", labels)
    printed = command(
        judge, monkeypatch, capsys, f"--judgements={tmp_path}/out.json", f"--labels={path}"
    )
    assert "2 labelled rows: 50.0 % agree, Cohen's kappa 0.000" in printed


def test_killed_and_started_again(tmp_path):
    """SIGKILL while some have come and others are under way: each is answered once, in all."""
    asked = [], ["--concurrency=3"]
    held = [False]

    def fault(prompt, number):
        return "hold" if held[0] and server.answered.total() >= 7 else ""

    with ChatServer(fault=fault) as server:
        held[0] = True
        more = arguments(tmp_path, PAIRS, server, *asked[1])
        command_line = [sys.executable, "-m", "gist_jax.judge", *more]
        options = dict(cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE)
        process = subprocess.Popen(command_line, **options)
        replies = tmp_path / "out.replies.jsonl"

        def some_have_come():
            assert process.poll() is None
            return replies.exists() and replies.read_text().count("\n") >= 7

        wait_for(some_have_come, seconds=120)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out.json").exists()
        kept = replies.read_text().count("\n")
        assert kept == server.answered.total() < 18
        with replies.open("a") as file:
            file.write('{"key": "cut by the ki')
        held[0] = False
        done = subprocess.run(command_line, text=True, **{**options, "stderr": subprocess.PIPE})
        assert done.returncode == 0, done.stderr
        assert len(server.answered) == 18 and set(server.answered.values()) == {1}
    assert [r["choice"] for r in results(tmp_path)["results"]] == CHOICES
    with Replies(replies).opened() as kept:
        assert len(kept.known) == 18


def test_a_server_that_is_gone_or_refuses(tmp_path, monkeypatch, capsys):
    """What came is kept, one sentence is said, and the rest is asked for the next time."""
    state = {"fault": "500"}

    def fault(prompt, number):
        return state["fault"] if server.answered.total() >= 5 else ""

    with ChatServer(fault=fault) as server:
        asked = arguments(tmp_path, PAIRS, server, "--retries=0", "--concurrency=1")
        said = mistake(judge, monkeypatch, capsys, *asked)
        assert (
            said.startswith("error: 13 of 18 replies did not come (Error code: 500") and "\n" not in said
        )
        assert len(server.asked) <= 7 and not (tmp_path / "out.json").exists()
        state["fault"] = "401"
        said = mistake(judge, monkeypatch, capsys, *asked)
        assert said.startswith("error: the judge refuses a request: Error code: 401")
        state["fault"] = ""
        command(judge, monkeypatch, capsys, *asked)
        assert len(server.answered) == 18 and set(server.answered.values()) == {1}
    assert [r["choice"] for r in results(tmp_path)["results"]] == CHOICES
    (tmp_path / "out.replies.jsonl").unlink()
    said = mistake(judge, monkeypatch, capsys, *asked)
    assert said.startswith("error: 18 of 18 replies did not come (Connection error")


def test_the_cost_is_said_first(tmp_path, monkeypatch, capsys):
    with ChatServer() as server:
        asked = arguments(tmp_path, PAIRS, server, "--price=1000,2000", "--dry-run")
        printed = command(judge, monkeypatch, capsys, *asked).splitlines()
        assert not server.asked
    assert printed[0] == "24 comparisons, of which 6 are of equal outputs"
    assert printed[1].startswith("18 to ask judge for: about ")
    numbers = [float(x.replace(",", "")) for x in printed[1].split() if x[0].isdigit()]
    _, read, written, dollars = numbers
    assert written == 18 * 60 and dollars == pytest.approx((read * 1000 + written * 2000) / 1e6)
    assert 18 * 100 < read < 18 * 400  # of some 700 letters each


def test_order_depends_on_the_seed_alone(tmp_path, monkeypatch, capsys):
    orders = []
    with ChatServer() as server:
        for seed in ("0", "0", "1"):
            asked = arguments(tmp_path, PAIRS, server, f"--seed={seed}")
            command(judge, monkeypatch, capsys, *asked)
            orders.append([r["swapped"] for r in results(tmp_path)["results"]])
    assert orders[0] == orders[1] != orders[2] and 5 < sum(orders[0]) < 19


def test_one_process_at_a_time(tmp_path, monkeypatch, capsys):
    with ChatServer() as server, Replies(tmp_path / "out.replies.jsonl").opened():
        said = mistake(judge, monkeypatch, capsys, *arguments(tmp_path, PAIRS, server))
    assert said == f"error: another process is writing {tmp_path}/out.replies.jsonl"


def published(tmp_path, split, choices, names=("M-gist-1", "M-pos-1")):
    """A file of judgements as they were published."""
    results = [
        {
            "reason": "Could not parse JSON: x" if choice is None else "",
            "choice": choice or "tie",
            "swapped": i % 2 == 0,
            "x": f"Instruction: Do {i}." + (f"\nInput: {i}\nInput: y" if i % 3 else ""),
            names[0]: "p",
            names[1]: "q",
        }
        for i, choice in enumerate(choices)
    ]
    path = tmp_path / f"chatgpt-{names[0]}-vs-{names[1]}-{split}-3000.json"
    file = {"names": dict(zip("ab", names, strict=True)), "scores": {}, "results": results}
    path.write_text(json.dumps(file))
    return path


def test_published_judgements(tmp_path, monkeypatch, capsys):
    human = ["A", "b", "tie", None, "a", "a", "B", "TIE"]
    paths = [published(tmp_path, "validation_human", human)]
    paths.append(published(tmp_path, "validation_seen", ["a", "b"] * 5))
    printed = command(judge, monkeypatch, capsys, *(f"--judgements={path}" for path in paths))
    lines = [line.split() for line in printed.splitlines()[2:]]
    assert lines[0][:7] == ["validation_human", "8", "3", "2", "2", "1", f"{100 * 4 / 7:.2f}"]
    assert lines[1][:7] == ["validation_seen", "10", "5", "0", "5", "0", "50.00"]
    assert lines[2][:7] == ["all", "18", "8", "2", "7", "1", f"{100 * 9 / 17:.2f}"]
    assert lines[0][-1] == f"{100 * sum([0, 1, 0, 0, 1]) / 5:.2f}"  # a was first where it is odd
    said = json.loads(paths[0].read_text()) | {"scores": {"M-gist-1": 4.5, "M-pos-1": 3.0}}
    (tmp_path / "x.json").write_text(json.dumps(said))
    printed = command(judge, monkeypatch, capsys, f"--judgements={tmp_path}/x.json")
    assert "x.json says 4.5 for M-gist-1, but its results amount to 4.0\n" in printed
    assert printed.count("says") == 1
    judged = read_judgements(paths[0]).results
    assert [(r.instruction, r.input) for r in judged[:2]] == [("Do 0.", ""), ("Do 1.", "1\nInput: y")]
    other = published(tmp_path, "validation_unseen", ["b"], names=("M-pos-1", "M-gist-1"))
    said = mistake(judge, monkeypatch, capsys, f"--judgements={paths[0]}", f"--judgements={other}")
    assert "compares M-pos-1 and M-gist-1, and" in said


def test_kappa_by_hand(tmp_path, monkeypatch, capsys):
    """20 rows a a, 5 a b, 10 b a, 15 b b: 70 % agree, 50 % would by chance. Names may be swapped."""
    rows = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15
    ours, theirs = zip(*rows, strict=True)
    path = published(tmp_path, "validation_human", ours)
    turned = [{"a": "b", "b": "a"}[choice] for choice in theirs]
    (tmp_path / "labels").mkdir()
    labels = published(tmp_path / "labels", "validation_human", turned, names=("M-pos-1", "M-gist-1"))
    said = command(judge, monkeypatch, capsys, f"--judgements={path}", f"--labels={labels}")
    assert "50 labelled rows: 70.0 % agree, Cohen's kappa 0.400 (0.1" in said
    same = command(judge, monkeypatch, capsys, f"--judgements={path}", f"--labels={path}")
    assert "100.0 % agree, Cohen's kappa 1.000 (1.000 to 1.000)" in same
    none = [{"instruction": "Do what?", "choice": "a"}]
    said = mistake(
        judge,
        monkeypatch,
        capsys,
        f"--judgements={path}",
        f"--labels={write(tmp_path / 'labels.csv', none)}",
    )
    assert said == "error: there is a label for 'Do what?', which was not judged"


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_workdirs_are_judged_by_split(tmp_path, workdir, monkeypatch, capsys):
    """The best checkpoint's predictions of all splits; a run against itself is all ties, for nothing."""
    output = f"--output={tmp_path}/out.json"
    both = f"--predictions={workdir}", f"--against={workdir}"
    printed = command(judge, monkeypatch, capsys, *both, "--judge=x", output)
    assert printed.splitlines()[0] == "12 comparisons, of which 12 are of equal outputs"
    assert [line.split()[0] for line in printed.splitlines()[-4:]] == [
        *(f"validation_{split}" for split in ("human", "seen", "unseen")),
        "all",
    ]


def test_mistakes(tmp_path, monkeypatch, capsys):
    def said(*more):
        return mistake(judge, monkeypatch, capsys, *more)

    given = runs(tmp_path, PAIRS[:3])
    assert "--predictions needs --judge" in said(*given)
    assert "--concurrency must be at least 1" in said("--judgements=x", "--concurrency=0")
    assert "not two numbers" in said("--judgements=x", "--price=1")
    whole = *given, "--judge=x", f"--output={tmp_path}/out.json"
    assert "OPENAI_API_KEY is not set" in said(*whole)
    rows = list(csv.DictReader((tmp_path / "b.csv").open()))
    write(tmp_path / "b.csv", rows[:2])
    assert "no partner for row 3 ('Do 2.') of a, a" in said(*whole)
    (tmp_path / "x.json").write_text('{"names": {}}')
    assert "holds no judgements" in said(f"--judgements={tmp_path}/x.json")
    (tmp_path / "x.json").write_text('{"format": 2}')
    assert "has format 2, but" in said(f"--judgements={tmp_path}/x.json")
    monkeypatch.setitem(sys.modules, "openai", None)
    runs(tmp_path, PAIRS[:3])
    assert "needs the package openai: pip install 'gist_jax[judge]'" in said(*whole)
    assert not (tmp_path / "out.json").exists()
