"""Scripts of launch/, as modules or in a shell."""

import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = [ROOT / "launch" / name for name in ("slurm.sbatch", "tpu_pod.sh", "gke_xpk.sh")]
BASH = shutil.which("bash")
# Of no job, wherever the tests run.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
TRAIN = ["python", "-m", "gist_jax.train", "--config=a b.py", "--workdir=it's"]


def script(name: str):
    """A script of launch/, which is no package, as a module; it finds those beside it."""
    if str(ROOT / "launch") not in sys.path:
        sys.path.insert(0, str(ROOT / "launch"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def bash(name: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    command = [BASH, str(ROOT / "launch" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, **options)
