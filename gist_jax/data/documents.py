"""Documents: texts without instructions, `{"text": …}` records or files, to train on as they are."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from gist_jax.data.fields import DOCUMENT, Example, Record, checked_text
from gist_jax.errors import UserError


@dataclasses.dataclass(frozen=True, repr=False)
class Documents:
    """The documents of one split of a source, each an example `{"text": …}`."""

    records: Sequence[Record]
    field: str  # of a record that holds its text
    where: str
    compress: float = 0.0  # the share of every window that is compressed; 0: nothing is

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        return {DOCUMENT: checked_text(self.records[index], self.field, index, self.where)}

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Documents({self.where}, {len(self)} texts)"


class TextFiles(Sequence[Record]):
    """The texts of files, read when they are asked for: records with the field text."""

    def __init__(self, files: Sequence[pathlib.Path]):
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        try:
            return {DOCUMENT: self.files[index].read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self.files[index]}: {error}") from None


def share(text: str) -> float:
    """The share of a window that is compressed, as a source's line has it.

    Raises:
      UserError: unless it is a number between 0 and 1.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UserError(f"compress={text} is no share: write a number between 0 and 1")
    return value


def require_instructions(source: str, splits: dict[str, Any]) -> None:
    """Raises a UserError if a source has documents where there must be instructions."""
    for split in splits.values():
        if any(isinstance(part, Documents) for part in getattr(split, "parts", [split])):
            raise UserError(
                f"{source} holds documents, which have no instructions: they are to train on, and to "
                "evaluate on by loss"
            )
