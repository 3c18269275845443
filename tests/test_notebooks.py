"""The notebooks run from top to bottom, in a folder of their own, with the wheel that they install."""

import os
import pathlib
import sys

import pytest
from wheels import REPOSITORY, build

nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra docs")
pytest.importorskip("ipykernel", reason="notebooks need the extra docs")
import nbformat  # noqa: E402

pytestmark = pytest.mark.slow
NOTEBOOKS = sorted((REPOSITORY / "colab").glob("*.ipynb"))
SHORT = "--config.num_steps=4 --config.evaluation.num_examples=4 --config.data.max_length=96"
SETTINGS = {
    "quickstart": {
        "GIST_JAX_SETTINGS": f"{SHORT} --config.model.num_layers=1",
        "GIST_JAX_BENCHMARK": "--instruction=15 --output_tokens=4 --rounds=2",
    },
    "adapter_1b": {
        "GIST_JAX_SETTINGS": f"{SHORT} --config.data.batch_size=4",
        "GIST_JAX_MODEL": str(REPOSITORY / "tests" / "examples" / "llama" / "export"),
        "GIST_JAX_DTYPE": "float32",
    },
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda x: x.stem)
def test_a_notebook_runs(path, wheel, tmp_path):
    pytest.importorskip("torch", reason="PyTorch is optional: pip install 'gist_jax[torch]'")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    installed = tmp_path / "installed"
    installed.mkdir()  # or Python would not look there again
    # Its commands are those of this Python, and pip installs the wheel alone, beside what there is.
    environment = {
        **os.environ,
        **SETTINGS[path.stem],
        "GIST_JAX_PACKAGE": str(wheel),
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_TARGET": str(installed),
        "PYTHONPATH": str(installed),
        # Optimizing takes longer than the notebooks themselves.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    notebook.cells.append(nbformat.v4.new_code_cell("print(gist_jax.__file__)"))
    folder = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder)
    client.execute(env=environment)
    assert notebook.cells[-1].outputs[0].text.startswith(str(installed))
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                assert len(output["data"]["image/png"]) < 200_000


def test_both_are_there():
    assert {path.stem for path in NOTEBOOKS} == SETTINGS.keys()
