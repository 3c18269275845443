"""Shell scripts call the tools of clusters as they should."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from launch_scripts import BASH, ENVIRONMENT, ROOT, SCRIPTS, TRAIN, bash, executables, wait_for


def test_shell_scripts_are_sound():
    installed = pathlib.Path(sys.executable).with_name("shellcheck")
    shellcheck = installed if installed.exists() else shutil.which("shellcheck")
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
