"""What a model would need, from its shape alone: FLOPs, bytes, and time on accelerators at best."""

import csv
import pathlib

from gist_jax.benchmark.columns import Row
from gist_jax.benchmark.costs import Costs, costs
from gist_jax.benchmark.counting import Cost, nbytes, parameters
from gist_jax.benchmark.devices import ACCELERATORS
from gist_jax.benchmark.programs import MODES, Point
from gist_jax.benchmark.roofline import roofline
from gist_jax.benchmark.rows import counted
from gist_jax.errors import UserError
from gist_jax.models.config import ModelConfig

LENGTHS = ("num_prompt_tokens", "num_input_tokens", "num_gist_tokens")


def estimated(config: ModelConfig, point: Point, dtype: str, interpolate: bool = False) -> list[Row]:
    """A row for each mode, with the time of a single chip of every kind, if it works as its maker says.

    It is None where the chip cannot hold the weights and the caches of the batch, and there is none of
    float32. Arguments of `costs`.
    """
    of_modes = {mode: costs(config, point, mode, dtype, interpolate) for mode in MODES}
    rows = []
    for mode, cost in of_modes.items():
        row = counted(point, mode, of_modes)
        if dtype == "bfloat16":  # whose products the makers' figures are of
            weights = nbytes(parameters(config, dtype))
            row |= _on_devices(weights, point.caches * cost.cache_bytes, cost)
        rows.append(row)
    return rows


def _on_devices(weights: int, caches: int, cost: Costs) -> Row:
    row: Row = {}
    for name, device in ACCELERATORS.items():
        room = device.memory - weights - (cost.first_token.results - caches)

        def seconds(program: Cost, device=device, room=room) -> float | None:
            return roofline(device, program.products, program.bytes, 0).best if room >= caches else None

        row[f"{name}_first_seconds"] = seconds(cost.first_token)
        row[f"{name}_token_seconds"] = seconds(cost.next_token)
        row[f"{name}_prompts"] = max(room, 0) // cost.cache_bytes if cost.cache_bytes else None
    return row


def read_lengths(path: str | pathlib.Path, output: int) -> list[tuple[dict[str, str], Point]]:
    """Rows of a CSV file with the columns LENGTHS, and what they describe.

    A prompt counts everything, the input what follows the gist tokens; one request at a time.

    Raises:
      UserError: if it is no such file.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not lines or (missing := set(LENGTHS) - lines[0].keys()):
        raise UserError(f"{path} has {'no column ' + missing.pop() if lines else 'no rows'}")
    points = []
    for number, line in enumerate(lines, start=2):
        if None in line:
            raise UserError(f"line {number} of {path} has more cells than there are columns")
        try:
            prompt, text, gists = (int(line[name]) for name in LENGTHS)
        except (TypeError, ValueError):
            sentence = f"line {number} of {path} has no whole numbers in {', '.join(LENGTHS)}"
            raise UserError(sentence) from None
        if prompt < text + gists:
            raise UserError(f"line {number} of {path}: the prompt is shorter than input and gist tokens")
        points.append((line, Point(prompt - text - gists, text, output, 1, gists, False)))
    return points
