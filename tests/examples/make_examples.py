"""Makes the examples in this folder, which every later version must read.

PYTHONPATH=tests/helpers python tests/examples/make_examples.py

They are of format 1 of workdirs and of exports, 2 of adapters, and 3 of gist caches; with masks other
than the paper's, of format 2 of exports and 3 of adapters. A new format gets examples of its own; these
stay as they are.
"""

import dataclasses
import json
import pathlib
import shutil
import tempfile

import jax
import quick

import gist_jax
from gist_jax.gist import MaskConfig
from gist_jax.inference.load import export_adapter
from gist_jax.training.loop import train
from gist_jax.training.run import prepare
from gist_jax.workdir import METRICS, MODEL, read_model, write_model

HERE = pathlib.Path(__file__).parent
MASKS = {
    "llama": MaskConfig(extra=1, placement="spread"),
    "t5": MaskConfig(extra=2, causal_gists=True, placement="before"),
}
INSTRUCTIONS = ["Say the last word two times.", "Name the animal in the input, and nothing else."]


def config(model_family: str):
    """The config of the workdirs, which were stopped after step 2 of 3."""
    config = quick.get_config(model_family)
    config.num_steps = 3
    config.model.update(hidden_size=8, intermediate_size=8, num_layers=1)
    return config


def main() -> None:
    """Writes all examples anew."""
    for family in ("llama", "t5"):
        folder = HERE / family
        shutil.rmtree(folder, ignore_errors=True)
        workdir = folder / "workdir"
        train(prepare(config(family), workdir))
        shutil.rmtree(workdir / "checkpoints" / "3")
        shutil.rmtree(workdir / "tensorboard")
        for file in workdir.rglob("commit_success.txt"):  # they name the folder they were made in
            file.write_text("Checkpoint commit was successful\n")
        lines = (workdir / METRICS).read_text().splitlines(keepends=True)
        (workdir / METRICS).write_text("".join(lines[:2]))
        lm = gist_jax.load(workdir)
        lm.compress(INSTRUCTIONS).save(folder / "two.gist.safetensors")
        lm.export(folder / "export")
        make_adapter(family)
        make_masked(family)


def make_adapter(model_family: str) -> None:
    """Writes the adapter, of the workdir's model."""
    folder = HERE / model_family
    settings = config(model_family)
    settings.update(pretrained=str(folder / "workdir"), gist_token_choices=(1, 2))
    settings.adapter.rank = 2
    with tempfile.TemporaryDirectory() as run:
        train(prepare(settings, run))
        export_adapter(run, folder / "adapter")
    described = json.loads((folder / "adapter" / MODEL).read_text())
    described["adapter"]["base"] = "workdir"  # not where it was made
    (folder / "adapter" / MODEL).write_text(json.dumps(described, indent=2) + "\n")


def make_masked(model_family: str) -> None:
    """Writes the same export and the same adapter once more, with other masks."""
    folder, mask = HERE / model_family, MASKS[model_family]
    lm = gist_jax.load(folder / "workdir")
    dataclasses.replace(lm, mask=mask).export(folder / "masked")
    shutil.copytree(folder / "adapter", folder / "masked_adapter")
    described = read_model(folder / "adapter")._replace(mask=mask)
    write_model(folder / "masked_adapter", described)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
