"""Launchers start what they say, pass signals and exit codes on, and leave nothing behind."""

import csv
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import quick
from doors import mistake

# Of ml_collections, for every config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = [ROOT / "launch" / name for name in ("slurm.sbatch", "tpu_pod.sh", "gke_xpk.sh")]
BASH = shutil.which("bash")
# Of no job, wherever the tests run.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
TRAIN = ["python", "-m", "gist_jax.train", "--config=a b.py", "--workdir=it's"]


def script(name: str):
    """A script of launch/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


local, sweep = script("local"), script("sweep")


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs a script of launch/ in this process; its exit code, and what it and its children printed."""

    def run(module, *arguments: str) -> tuple[int | str, str, str]:
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        code = 0
        try:
            module.main()
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def wait_for(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def signal_this_process(number: signal.Signals, condition) -> None:
    """Soon, from a thread: once the condition holds."""

    def wait_and_signal():
        wait_for(condition)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait_and_signal).start()


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def executables(folder: pathlib.Path, **programs: str) -> dict[str, str]:
    """An environment in which these come first."""
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return ENVIRONMENT | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


# Begins every child: `number` is its own, `folder` where it may write.
CHILD = """
import json, os, pathlib, signal, sys, time
number, folder = int(os.environ["JAX_PROCESS_ID"]), pathlib.Path({folder!r})
def ready(): (folder / f"ready{{number}}").write_text(str(os.getpid()))
"""


@pytest.fixture
def child(tmp_path):
    """A command that runs some Python in every process."""

    def command(text: str) -> list[str]:
        return ["--", sys.executable, "-S", "-c", CHILD.format(folder=str(tmp_path)) + text]

    return command


def started(folder: pathlib.Path) -> list[int]:
    """The numbers that the system gave to processes that are ready."""
    return [int(text) for f in folder.glob("ready*") if (text := f.read_text())]


def test_every_process_finds_its_place(run, child, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_before=1")
    write = """
(folder / str(number)).write_text(json.dumps({**os.environ, "group": os.getpgrp()}))
print("I am", number)
"""
    code, out, err = run(local, "--processes=3", "--devices=2", *child(write))
    assert (code, out, err) == (0, "I am 0\n", "")  # only the first speaks
    places = [json.loads((tmp_path / str(number)).read_text()) for number in range(3)]
    assert len({place["JAX_COORDINATOR_ADDRESS"] for place in places}) == 1
    host, port = places[0]["JAX_COORDINATOR_ADDRESS"].split(":")
    assert host == "localhost" and int(port) > 0
    for number, place in enumerate(places):
        assert (place["JAX_PROCESS_ID"], place["JAX_NUM_PROCESSES"]) == (str(number), "3")
        assert place["XLA_FLAGS"] == "--xla_before=1 --xla_force_host_platform_device_count=2"
        assert place["JAX_PLATFORMS"] == "cpu"
        assert place["group"] != os.getpgrp()  # so that Ctrl-C does not reach it


def test_the_first_failure_decides(run, child, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "GRACE", 0.4)
    monkeypatch.setattr(local, "KILL", 0.2)
    fail = """
if number == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready()
    time.sleep(15)
while not (folder / "ready0").exists(): time.sleep(0.01)
if number == 1: sys.exit("the cause")
time.sleep(0.2)
sys.exit(7)
"""
    code, _, err = run(local, "--processes=3", *child(fail))
    assert code == 1
    assert err.splitlines() == [
        "error: process 1 exited with code 1",
        "  the cause",
        "error: process 2 exited with code 7",
    ]
    assert not any(map(alive, started(tmp_path)))


def test_a_signal_is_a_failure(run, child, monkeypatch):
    monkeypatch.setattr(local, "GRACE", 0.1)
    kill = "os.kill(os.getpid(), signal.SIGKILL) if number else time.sleep(15)"
    code, _, err = run(local, "--processes=2", *child(kill))
    assert code == 128 + signal.SIGKILL
    assert err == "error: process 1 was ended by signal 9\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_launcher_lets_processes_save(run, child, tmp_path, monkeypatch, number):
    monkeypatch.setattr(local, "GRACE", 0.1)  # no limit to saving
    save = """
def save(*_):
    time.sleep(0.6 * number)
    (folder / f"saved{number}").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
ready()
time.sleep(15)
"""
    signal_this_process(number, lambda: len(started(tmp_path)) == 2)
    assert run(local, "--processes=2", *child(save)) == (143, "", "")
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="as only Linux has it")
def test_no_process_outlives_its_launcher(child, tmp_path):
    command = [sys.executable, ROOT / "launch" / "local.py", "--processes=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([*command, *child("ready(); time.sleep(15)")], env=environment)
    wait_for(lambda: len(started(tmp_path)) == 2)
    assert all(map(alive, started(tmp_path)))
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(map(alive, started(tmp_path))))


def test_local_dry_run(run, tmp_path):
    command = ["touch", str(tmp_path / "a b")]
    code, out, _ = run(local, "--processes=2", "--devices=4", "--dry-run", "--", *command)
    assert code == 0 and not list(tmp_path.iterdir())
    for number, line in enumerate(map(shlex.split, out.splitlines())):
        assert line[0] == "env" and line[-2:] == command
        assert {"JAX_NUM_PROCESSES=2", f"JAX_PROCESS_ID={number}", "JAX_PLATFORMS=cpu"} < set(line)
    subprocess.run(out, shell=True, check=True)  # what is printed can be run
    assert (tmp_path / "a b").exists()


def test_mistakes_with_local(monkeypatch, capsys):
    assert mistake(local, monkeypatch, capsys, "--processes=2").count("\n") == 1
    assert "'0' is not a number" in mistake(local, monkeypatch, capsys, "--processes=0", "--", "true")
    assert "no command nope" in mistake(local, monkeypatch, capsys, "--processes=2", "--", "nope")


QUICK = f"--config={ROOT / 'tests' / 'quick.py'}"
SCORES = {
    "gist-1": {"seen": 40.0, "unseen": 30.0},
    "gist-2": {"seen": 60.0, "unseen": 20.0},
    "pos_control-1": {"seen": 70.0, "unseen": 50.0},
    "neg_control-1": {"seen": 20.0, "unseen": 10.0},
}


def finished(workdir: pathlib.Path, **settings) -> pathlib.Path:
    """What train leaves of a finished run, as far as a sweep looks at it."""
    config = quick.get_config()
    condition, tokens = workdir.name.split("-")
    config.update(condition=condition, num_gist_tokens=int(tokens), **settings)
    (workdir / "checkpoints" / "8").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    best = {f"validation_{split}/rougeL": value for split, value in SCORES[workdir.name].items()}
    others = {"validation_seen/exact_match": 1.0, "validation_seen/rouge1": 2.0}
    worse = {name: value - 5 for name, value in best.items()}
    records = [{"step": 4, **best, **others}, {"step": 6, "loss": 1.0}, {"step": 8, **worse, **others}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return workdir


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Instead of train: copies a finished run into the workdir, or fails; which were started."""
    log = tmp_path / "started"
    for name in SCORES:
        finished(tmp_path / "trained" / name)
    # The first argument that is a workdir, and the last part of it.
    fake = f"""#!{BASH}
for word; do case $word in --workdir=*) workdir=${{word#--workdir=}} ;; esac; done
name=${{workdir##*/}}
echo $name >> {log}
[ -e {tmp_path}/trained/$name ] || exit 3
mkdir -p $workdir && cp -r {tmp_path}/trained/$name/. $workdir
"""
    executables(tmp_path / "bin", python=fake)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    return lambda: log.read_text().split() if log.exists() else []


def grid(folder: pathlib.Path) -> list[str]:
    return [QUICK, f"--output={folder / 'sweep'}", "--num_gist_tokens=1,2"]


def test_sweep_dry_run(run, tmp_path, train):
    settings = ["--", "--config.num_steps=9"]
    code, out, _ = run(sweep, *grid(tmp_path), "--seeds=0,3", "--dry-run", *settings)
    assert code == 0 and not train() and not (tmp_path / "sweep").exists()
    commands = [shlex.split(line) for line in out.splitlines()]
    names = [*SCORES, *(f"{name}-seed3" for name in SCORES)]
    assert [c[3] for c in commands] == [f"--workdir={tmp_path / 'sweep' / n}" for n in names]
    own = [f"--config.{f}" for f in ("condition=gist", "num_gist_tokens=2", "seed=3")]
    python, expected = str(tmp_path / "bin" / "python"), [QUICK, "--config.num_steps=9", *own]
    assert commands[5][:3] == [python, "-m", "gist_jax.train"] and commands[5][4:] == expected


def test_sweep_goes_on_and_reports(run, tmp_path, train):
    shutil.move(tmp_path / "trained" / "gist-2", tmp_path / "broken")
    code, out, _ = run(sweep, *grid(tmp_path))
    assert code == "error: 1 of 4 runs failed: gist-2 (exit code 3)"
    assert train() == list(SCORES)  # the others still ran
    assert "not finished: gist-2\n" in out and "recovery gist-1" in out
    shutil.move(tmp_path / "broken", tmp_path / "trained" / "gist-2")
    code, out, _ = run(sweep, *grid(tmp_path))
    assert code == 0 and train() == [*SCORES, "gist-2"]  # and are not run again
    code, again, _ = run(sweep, *grid(tmp_path), "--table")
    assert code == 0 and len(train()) == 5 and again in out


def test_local_a_failure_counts_more_than_that_others_have_saved(run, tmp_path):
    code = "import os, sys, time; n = int(os.environ['JAX_PROCESS_ID']); time.sleep(n)"
    code += "; sys.exit([143, 3][n])"
    assert run(local, "--processes=2", "--", sys.executable, "-c", code)[0] == 3


def test_sweep_table(run, tmp_path, train):
    _, out, _ = run(sweep, *grid(tmp_path))
    with (tmp_path / "sweep" / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    columns = ["split", "metric", *SCORES, "recovery gist-1", "recovery gist-2"]
    assert list(table[0]) == columns
    expected = {
        ("validation_seen", "ROUGE-L"): [40, 60, 70, 20, 40, 80],
        ("validation_unseen", "ROUGE-L"): [30, 20, 50, 10, 50, 25],
        ("validation_seen", "exact match"): [1, 1, 1, 1],
    }
    assert [tuple(row.values())[:2] for row in table] == list(expected)
    for row, values in zip(table, expected.values(), strict=True):
        assert [float(x) for x in list(row.values())[2:]][: len(values)] == values
    printed = [re.split("  +", line.strip()) for line in out.splitlines()]
    assert columns in printed
    assert ["validation_seen", "ROUGE-L", "40.0", "60.0", "70.0", "20.0", "40.0 %", "80.0 %"] in printed


@pytest.mark.parametrize("lacks", ["checkpoint", "evaluation", "config"])
def test_what_is_not_finished(run, tmp_path, train, lacks):
    settings = {"optimizer": {"learning_rate": 0.5}} if lacks == "config" else {}
    workdir = finished(tmp_path / "sweep" / "gist-1", **settings)
    if lacks == "checkpoint":  # killed after the last evaluation
        (workdir / "checkpoints" / "8").rename(workdir / "checkpoints" / "6")
    if lacks == "evaluation":
        lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        (workdir / "metrics.jsonl").write_text("".join(lines[:-1]))
    run(sweep, *grid(tmp_path), "--conditions=gist")
    assert train() == ["gist-1", "gist-2"]


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_a_real_run_is_finished(run, tmp_path, train, workdir):
    shutil.copytree(workdir, tmp_path / "sweep" / "gist-1")
    _, out, _ = run(sweep, QUICK, f"--output={tmp_path / 'sweep'}", "--conditions=gist", "--table")
    assert "validation_human   ROUGE-L" in out and "not finished: gist-2" in out


def test_a_stopped_sweep_lets_its_run_save(run, tmp_path, train):
    save = f"#!{BASH}\ntrap 'sleep 0.3; touch {tmp_path}/saved; exit 143' TERM\ntouch {tmp_path}/ready\n"
    executables(tmp_path / "bin", python=save + "for i in {1..100}; do sleep 0.05; done\n")
    signal_this_process(signal.SIGTERM, (tmp_path / "ready").exists)
    code, out, _ = run(sweep, *grid(tmp_path))
    assert code == 143 and (tmp_path / "saved").exists()
    assert out.count("gist_jax.train") == 1  # no other run was started


def test_sweep_by_slurm(run, tmp_path, train):
    code, out, _ = run(sweep, *grid(tmp_path), "--slurm")
    commands = tmp_path / "sweep" / "commands.txt"
    assert code == 0 and not train()
    assert out == f"sbatch --array=0-3 launch/slurm.sbatch {commands}\n"
    environment = ENVIRONMENT | {"SLURM_ARRAY_TASK_ID": "1"}
    done = bash("slurm.sbatch", "--dry-run", str(commands), env=environment)
    step = shlex.split(done.stdout)
    assert step[0] == "srun" and step[3:] == shlex.split(commands.read_text().splitlines()[1])


def test_mistakes_with_sweep(tmp_path, monkeypatch, capsys):
    def said(*arguments):
        return mistake(sweep, monkeypatch, capsys, QUICK, f"--output={tmp_path / 'x'}", *arguments)

    assert "'x' is not one of gist" in said("--conditions=gist,x")
    assert "'-1' is not a number" in said("--num_gist_tokens=-1")
    assert "unknown config field nope" in said("--", "--config.nope=1")
    assert "--config.seed=1 is not a setting for all runs" in said("--", "--config.seed=1")
    assert "invalid literal" in said("--", "--config.num_steps=x")
    assert "nope.py" in mistake(sweep, monkeypatch, capsys, "--config=nope.py", f"--output={tmp_path}")
    assert not list(tmp_path.iterdir())


def bash(name: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    command = [BASH, str(ROOT / "launch" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, **options)


def test_shell_scripts_are_sound():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    done = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for path in SCRIPTS:
        subprocess.run([BASH, "-n", path], check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("slurm.sbatch", "no command"),
        ("slurm.sbatch true", "submit it with sbatch"),
        ("tpu_pod.sh --zone=z -- true", "the name of the TPU is missing"),
        ("tpu_pod.sh pod -- true", "--zone is missing"),
        ("tpu_pod.sh pod --zone=z", "the command, after --, is missing"),
        ("tpu_pod.sh pod other --zone=z -- true", "unexpected argument other"),
        ("gke_xpk.sh --cluster=c --tpu-type=t -- true", "--workload is missing"),
        ("gke_xpk.sh --cluster=c --workload=w --tpu-type=t", "the command, after --, is missing"),
        ("gke_xpk.sh c -- true", "unexpected argument c"),
    ],
)
def test_mistakes_with_shell_scripts(arguments, said):
    done = bash(*arguments.split(), env=ENVIRONMENT)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_without_the_clouds_own_tools(tmp_path):
    for script, arguments in (
        ("tpu_pod.sh", ["pod", "--zone=z"]),
        ("gke_xpk.sh", ["--cluster=c", "--workload=w", "--tpu-type=t"]),
    ):
        done = bash(script, *arguments, "--", "true", env={"PATH": str(tmp_path)})
        assert done.returncode == 1
        assert re.fullmatch("error: (gcloud|xpk) is not installed: .*\n", done.stderr)


@pytest.fixture
def slurm(tmp_path):
    """The environment of a job. srun runs one task, which scancel signals; itself it kills on TERM."""
    log = f'echo "${{0##*/}} $*" >> {tmp_path}/log'
    return executables(
        tmp_path / "bin",
        srun=f"""#!{BASH}
{log}
while [[ $1 = --* ]]; do shift; done
"$@" &
echo $! > {tmp_path}/task
trap "kill -KILL $!" TERM
wait $!
""",
        scancel=f"#!{BASH}\n{log}\nkill -TERM $(cat {tmp_path}/task)\n",
        scontrol=f"#!{BASH}\n{log}\n",
    ) | {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "6"}


def called(folder: pathlib.Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 5, 143])
def test_slurm_requeues_what_is_not_complete(slurm, tmp_path, code):
    done = bash("slurm.sbatch", "sh", "-c", f"exit {code}", env=slurm)
    assert done.returncode == code
    step = f"srun --kill-on-bad-exit=1 --cpus-per-task=6 sh -c exit {code}"
    assert called(tmp_path) == [step] + ["scontrol requeue Incomplete 7"] * (code == 143)


@pytest.mark.parametrize("code", [143, 0])
def test_slurm_passes_term_on_and_waits(slurm, tmp_path, code):
    (tmp_path / "commands.txt").write_text("false\nbash 'save it.sh'\n")
    (tmp_path / "save it.sh").write_text(
        f"trap 'echo got TERM >> log; sleep 0.3; echo saved >> log; exit {code}' TERM\ntouch ready\n"
        "for i in {1..100}; do sleep 0.05; done\n"
    )
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1"}
    command = [BASH, ROOT / "launch" / "slurm.sbatch", "commands.txt"]
    job = subprocess.Popen(command, cwd=tmp_path, env=slurm | array)
    wait_for((tmp_path / "ready").exists)
    job.terminate()
    assert job.wait(timeout=10) == code
    # The one task of the array, for which the number of the job would not do.
    requeued = ["scontrol requeue Incomplete 5_1"] * (code == 143)
    assert called(tmp_path)[1:] == ["scancel --signal=TERM 5_1", "got TERM", "saved", *requeued]


def test_slurm_directives():
    text = (ROOT / "launch" / "slurm.sbatch").read_text()
    before, _, after = text.partition("set -euo pipefail")
    directives = re.findall("^#SBATCH --(.*)$", before, re.M)
    assert "#SBATCH" not in after  # where SLURM does not look
    for needed in ("signal=B:TERM@120", "requeue", "open-mode=append", "ntasks-per-node=8"):
        assert needed in directives


def test_slurm_array_mistakes(slurm, tmp_path):
    array = slurm | {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
    (tmp_path / "commands.txt").write_text("true\ntrue\n")
    done = bash("slurm.sbatch", str(tmp_path / "commands.txt"), env=array)
    assert done.returncode == 2 and "no line for task 2" in done.stderr
    done = bash("slurm.sbatch", "true", "x", env=array)
    assert done.returncode == 2 and "one file of commands" in done.stderr
    assert not (tmp_path / "log").exists()


def test_tpu_pod(tmp_path):
    """The workers' part runs here, in a home of its own."""
    home = tmp_path / "home"
    home.mkdir()
    environment = executables(
        tmp_path / "bin",
        gcloud=f"""#!{sys.executable}
import json, os, shutil, subprocess, sys
arguments = sys.argv[1:]
print(json.dumps([a for a in arguments if not a.startswith("--command=")]), flush=True)
if "scp" in arguments:
    shutil.copy(arguments[4], {str(home)!r})
for a in arguments:
    if a.startswith("--command="):
        sys.exit(subprocess.call([{BASH!r}, "-c", a.removeprefix("--command=")], cwd={str(home)!r},
            env=os.environ | {{"HOME": {str(home)!r}}}))
""",
        uv=f'#!{BASH}\necho "uv $*"\n[ "$1" != venv ] || mkdir .venv\n',
        gcsfuse=f'#!{BASH}\necho "gcsfuse $*"\n',
        mountpoint=f"#!{BASH}\nexit 1\n",
    )
    command = ["sh", "-c", 'echo "$PWD: $1"; test -f README.md; exit 5', "sh", "it's"]
    options = ["pod", "--zone=z", "--project=p", "--bucket=b"]
    done = bash("tpu_pod.sh", *options, "--", *command, env=environment)
    assert done.returncode == 5, done.stderr
    scp, ssh, venv, install, mount, said = done.stdout.splitlines()
    tpu, rest = ["compute", "tpus", "tpu-vm"], ["--project=p", "--zone=z", "--worker=all"]
    archive = json.loads(scp)[4]
    assert json.loads(scp) == [*tpu, "scp", archive, "pod:", *rest]
    assert json.loads(ssh) == [*tpu, "ssh", "pod", *rest]
    assert venv.startswith("uv venv") and install == "uv pip install --quiet --editable .[tpu]"
    assert mount.startswith("gcsfuse") and mount.endswith(" b runs")
    assert said == f"{home / 'gist_jax'}: it's"
    assert not pathlib.Path(archive).parent.exists()
    # Again, with what is there and without a bucket.
    done = bash("tpu_pod.sh", "pod", "--zone=z", "--", "true", env=environment)
    assert done.returncode == 0 and "uv venv" not in done.stdout and "gcsfuse" not in done.stdout


def test_tpu_pod_dry_run(tmp_path):
    environment = executables(tmp_path / "bin", gcloud=f"#!{BASH}\ntouch {tmp_path}/called\n")
    done = bash("tpu_pod.sh", "pod", "--zone=z", "--dry-run", "--", *TRAIN, env=environment)
    assert done.returncode == 0 and not (tmp_path / "called").exists()
    words = shlex.split(done.stdout)
    assert words.count("gcloud") == 2 and words.count("--zone=z") == 2
    assert words[-1].endswith(f"; on_worker '' {shlex.join(TRAIN)}")


def test_gke_xpk(tmp_path):
    xpk = f"#!{BASH}\nprintf '%s\\n' \"$@\"\nfor word; do case $word in --script-dir=*)\n"
    xpk += "test -f ${word#--script-dir=}/setup.py && echo the repository ;; esac; done\nexit 4\n"
    environment = executables(tmp_path / "bin", xpk=xpk)
    options = ["--cluster=c", "--workload=w", "--tpu-type=v5litepod-64", "--max-restarts=3"]
    done = bash("gke_xpk.sh", *options, "--", *TRAIN, env=environment)
    assert done.returncode == 4
    words = done.stdout.splitlines()
    assert words[:2] == ["workload", "create"] and words[-1] == "the repository"
    assert words[-6:-2] == options  # after our own, so that they win
    install = "pip install --quiet --editable '.[tpu]'"
    assert words[-2] == f"--command={install} && exec {shlex.join(TRAIN)}"
    (folder,) = (w.partition("=")[2] for w in words if w.startswith("--script-dir="))
    assert not pathlib.Path(folder).exists()
    dry = bash("gke_xpk.sh", "--dry-run", *options, "--", *TRAIN, env=ENVIRONMENT)
    assert dry.returncode == 0 and shlex.split(dry.stdout)[-1] == words[-2]
