"""The parts of an output that takes long to make, each whole or absent, so that making it resumes."""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from gist_jax.errors import UserError
from gist_jax.io import read_json, write_json

_SETTINGS = "settings.json"


class Parts:
    """The folder `.NAME.parts` beside an output, in which its parts are until all are there."""

    def __init__(self, output: pathlib.Path) -> None:
        self._output = output
        self.folder = output.with_name(f".{output.name}.parts")

    def begin(self, made_of: Mapping[str, Any]) -> None:
        """Makes the folder, or takes the one there is.

        Args:
          made_of: what the parts depend on, as JSON has it.

        Raises:
          UserError: if there are parts that were made of something else.
        """
        settings = self.folder / _SETTINGS
        if settings.exists():
            before = read_json(settings)
            for name in sorted(made_of.keys() | before.keys()):
                if before.get(name) != made_of.get(name):
                    raise UserError(
                        f"{self.folder} holds parts of {self._output} whose {name} is "
                        f"{before.get(name)!r}, not {made_of.get(name)!r}: delete it, or give the same"
                    )
        write_json(settings, dict(made_of))

    def path(self, name: str) -> pathlib.Path:
        """The file of a part, to be written by `io.atomic_write`."""
        return self.folder / name

    def remove(self) -> None:
        """Removes the folder, once the output is there."""
        shutil.rmtree(self.folder)
