"""Instructions of a file, compressed into one gist cache file: in parts, so that it resumes."""

import hashlib
import json
import pathlib
import sys
from typing import Any

from tqdm import tqdm

from gist_jax.data.files import read_records
from gist_jax.errors import UserError, shortened
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.language_model import LanguageModel
from gist_jax.parts import Parts

BATCH, PART = 32, 1024  # instructions at a time, and in a part

STANDARD = "-"  # in place of a file: standard input, a JSON record a line


def compress_file(
    lm: LanguageModel, inputs: str, output: pathlib.Path, after: GistCache | None, settings: Any
) -> GistCache:
    """Compresses the field instruction of every record, in their order.

    Args:
      inputs: JSON, JSON lines, CSV or parquet.
      output: appears when all is there.
      after: of one row, which stands before every instruction.
      settings: what the caches depend on besides the model and the texts, as JSON has it.

    Returns:
      What the output holds.

    Raises:
      UserError: if the file cannot be read, or an instruction cannot be compressed.
    """
    texts, parts = _instructions(inputs), Parts(output)
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    made_of = {"instructions": digest, "instructions of a part": PART, "settings": settings}
    parts.begin({**made_of, "model": lm.origin.base, "adapter": lm.origin.adapter})
    starts = range(0, len(texts), PART)
    left = [start for start in starts if not parts.path(_name(start)).exists()]
    total = sum(len(texts[start : start + PART]) for start in left)
    with tqdm(total=total, desc="compressing", unit="instruction") as bar:
        for start in left:
            part = texts[start : start + PART]
            made = []
            for first in range(0, len(part), BATCH):
                made.append(lm.compress(part[first : first + BATCH], after=after))
                bar.update(len(made[-1]))
            GistCache.stack(made).save(parts.path(_name(start)))
    gists = GistCache.stack([GistCache.load(parts.path(_name(start))) for start in starts])
    gists.save(output)
    parts.remove()
    return gists


def _name(start: int) -> str:
    return f"{start:09}.gist.safetensors"


def _instructions(inputs: str) -> list[str]:
    if inputs == STANDARD:
        try:
            records = [json.loads(line) for line in sys.stdin if line.strip()]
        except (ValueError, RecursionError) as error:
            raise UserError(f"standard input must be a JSON record a line: {shortened(error)}") from None
    else:
        records = read_records(inputs)
    for i, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("instruction"), str):
            raise UserError(f"record {i} of {inputs} must have an instruction, a text")
    if not records:
        raise UserError("there is no instruction on standard input")
    return [record["instruction"] for record in records]
