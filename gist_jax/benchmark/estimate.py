"""What a model would need, from its shape alone: FLOPs, bytes, and time on accelerators at best."""

from gist_jax.benchmark.costs import Costs, costs
from gist_jax.benchmark.counting import Cost, nbytes, parameters
from gist_jax.benchmark.rows import Row, cost_row
from gist_jax.benchmark.workload import MODES, Workload
from gist_jax.cost_model.devices import ACCELERATORS, Accelerator, roofline
from gist_jax.errors import UserError
from gist_jax.io import Path, read_csv
from gist_jax.models.config import ModelConfig

LENGTHS = ("num_prompt_tokens", "num_input_tokens", "num_gist_tokens")


def estimated(
    config: ModelConfig, workload: Workload, dtype: str, interpolate: bool = False
) -> list[Row]:
    """Estimates a row for each mode.

    It has the time of a single chip of every kind, if it works as its maker says: None where the chip
    cannot hold the weights and the caches of the batch, and none of float32. Arguments of `costs`.
    """
    of_modes = {mode: costs(config, workload, mode, dtype, interpolate) for mode in MODES}
    rows = []
    for mode, cost in of_modes.items():
        row = cost_row(workload, mode, of_modes)
        if dtype == "bfloat16":  # what the makers say is of it
            weights = nbytes(parameters(config, dtype))
            row |= _on_devices(weights, workload.caches * cost.cache_bytes, cost)
        rows.append(row)
    return rows


def _on_devices(weights: int, caches: int, cost: Costs) -> Row:
    row: Row = {}
    for name, device in ACCELERATORS.items():
        room = device.memory - weights - (cost.first_token.results - caches)

        def seconds(program: Cost, device: Accelerator = device, room: int = room) -> float | None:
            return (
                roofline(device, program.matmul_flops, program.bytes, 0).best if room >= caches else None
            )

        row[f"{name}_first_seconds"] = seconds(cost.first_token)
        row[f"{name}_token_seconds"] = seconds(cost.next_token)
        row[f"{name}_prompts"] = max(room, 0) // cost.cache_bytes if cost.cache_bytes else None
    return row


def read_lengths(path: Path, output: int) -> list[tuple[dict[str, str], Workload]]:
    """Reads the rows of a CSV file with the columns LENGTHS, and what they describe.

    A prompt counts everything, the input what follows the gist tokens; one request at a time.

    Raises:
      UserError: if it is no such file.
    """
    lines = read_csv(path)
    if not lines or (missing := set(LENGTHS) - lines[0].keys()):
        raise UserError(f"{path} has {'no column ' + missing.pop() if lines else 'no rows'}")
    workloads = []
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
        workloads.append((line, Workload(prompt - text - gists, text, output, 1, gists, False)))
    return workloads
