"""What several tests share. Everything compiled is cached between runs."""

import functools
import os
import pathlib
import signal
import sys

import filelock
import hypothesis
import jax
import numpy as np
import optax
import pytest
import quick
from processes import run_demo
from tiny import TINY

import gist_jax
from gist_jax.evaluation.predict import evaluator
from gist_jax.interop.huggingface import Checkpoint
from gist_jax.models import registry
from gist_jax.training.loop import train
from gist_jax.training.run import prepare

TESTS = pathlib.Path(__file__).parent

# Meshes are tested on simulated devices, even where there is a GPU, or libtpu without a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Of commands that tests start, too: no test writes into the user's own cache.
os.environ["XDG_CACHE_HOME"] = str(TESTS.parent / ".cache" / "user")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(TESTS.parent / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_collection_modifyitems(items):
    """The two longest come first, each in a process; last what waits for the first, the demo."""

    def order(item):
        waits = "demo" in getattr(item, "fixturenames", ())
        return {"test_demo": 0, "test_quickstart_of_t5": 1}.get(item.name, 3 if waits else 2)

    items.sort(key=order)


def promoting(function):
    """The function of a library that counts on dtypes being promoted."""

    @functools.wraps(function)
    def promoted(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return promoted


# No dtype changes unless our code says so.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.nn.dot_product_attention = promoting(jax.nn.dot_product_attention)
make_chain = optax.chain
optax.chain = lambda *parts: make_chain(
    *(part._replace(update=promoting(part.update)) for part in parts)
)

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Gives compiled programs up before they reach the number of memory mappings that Linux allows.

    A process that reaches it (vm.max_map_count, 65,530) ends in a segmentation fault of XLA's.
    """
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(scope="session", params=list(TINY))
def model_family(request):
    """Every test that depends on this, or on what is below, runs for all families."""
    return request.param


@pytest.fixture(scope="session")
def golden(model_family):
    """Results of the published implementation on the weights of `golden_model`."""
    return np.load(TESTS / "golden" / model_family / "cases.npz")


@pytest.fixture(scope="session")
def golden_model(model_family):
    """Configuration and stacked parameters."""
    checkpoint = Checkpoint(TESTS / "golden" / model_family)
    return checkpoint.config, checkpoint.load("float32")


@pytest.fixture(scope="session")
def tiny(model_family):
    """A random model: configuration and stacked parameters."""
    config = TINY[model_family]
    return config, registry.init(config, jax.random.key(7))


def shared_folder(tmp_path_factory, name, make):
    """A folder of this session that whichever worker asks first makes, by `make(folder)`."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with filelock.FileLock(f"{folder}.lock"):
        made = folder.with_name(f"{name}.made")
        if not made.exists():
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, model_family):
    """A trained run, which no test may change."""

    def make(folder):
        run = prepare(quick.get_config(model_family), folder)
        train(run, evaluator(run))

    return shared_folder(tmp_path_factory, f"run-{model_family}", make)


@pytest.fixture(scope="session")
def lm(workdir):
    return gist_jax.load(workdir)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The folder of the demo, whose three models slow tests share, and what the demo printed.

    In GIST_JAX_DEMO there is one that `.ci/readme` has made.
    """
    if made := os.environ.get("GIST_JAX_DEMO"):
        return pathlib.Path(made), (pathlib.Path(made) / "printed.txt").read_text()

    def make(folder):
        (folder / "printed.txt").write_text(run_demo(folder))

    folder = shared_folder(tmp_path_factory, "demo", make)
    return folder, (folder / "printed.txt").read_text()


@pytest.fixture
def run_script(monkeypatch, capfd):
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
