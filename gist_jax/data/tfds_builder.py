"""Instruction data as TensorFlow Datasets, stored as array_record. TensorFlow itself is not needed.

    AlpacaPlus(source="alpaca_plus/", data_dir=DIR).download_and_prepare()
    tfds.data_source("alpaca_plus", split="train", data_dir=DIR)[0]["instruction"]

and for training: `--config.data.source='tfds:alpaca_plus?data_dir=DIR'`.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from gist_jax.data.fields import FIELDS
from gist_jax.data.sources import load_splits
from gist_jax.errors import UserError


class InstructionBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """Builds the splits of a source with the features instruction, input and output.

    A subclass names a data set and says what it is. Records keep the order of the source.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION, CITATION = "", ""
    url_infos = None  # nothing is downloaded; to look for checksums TFDS needs importlib_resources

    def __init__(self, *, source: str = "", **options: Any):
        """Takes the line of a source (see `gist_jax.data.sources`), and the options of any builder."""
        self._source = source
        super().__init__(file_format=options.pop("file_format", "array_record"), **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in FIELDS}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if not self._source:
            raise UserError(f"{self.name} is not built: build it with a source")
        return {
            name: self._generate_examples(split) for name, split in load_splits(self._source).items()
        }

    def _generate_examples(self, examples: Any) -> Iterator[tuple[int, dict[str, str]]]:
        for i, example in enumerate(examples):
            yield i, {name: example[name] for name in FIELDS}


class AlpacaPlus(InstructionBuilder):
    """Alpaca+, of what `gist_jax.data.alpaca_plus` wrote."""

    DESCRIPTION = (
        "Alpaca+: instructions, inputs and outputs of Stanford Alpaca and Self-Instruct, split into "
        "train, validation_seen, validation_unseen and validation_human."
    )
    CITATION = """@inproceedings{mu2023learning,
  title = {Learning to Compress Prompts with Gist Tokens},
  author = {Mu, Jesse and Li, Xiang Lisa and Goodman, Noah},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}
}"""
