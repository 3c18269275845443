"""The rows of the benchmark's table, one for each workload and mode, and how they are formatted."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.ticker import EngFormatter

from gist_jax.benchmark.costs import Costs
from gist_jax.benchmark.workload import Workload
from gist_jax.cost_model.devices import ACCELERATORS

Row = dict[str, Any]  # column -> text, number or None
Form = Callable[..., str]

WORKLOAD = ("instruction", "input", "output", "batch", "gist_tokens")


def cost_row(workload: Workload, mode: str, costs: Mapping[str, Costs]) -> Row:
    """The columns of a row that need no run: FLOPs, bytes and sizes.

    Args:
      costs: by mode.
    """
    cost, without = costs[mode], costs["none"].first_token.flops
    prompt = costs["prompt_cache"].first_token.flops
    made, cached = cost.make_cache, cost.first_token.flops
    return dict(
        instruction=workload.instruction,
        input=workload.input,
        output=workload.output,
        batch=workload.batch,
        gist_tokens=workload.gist_tokens,
        caches=workload.caches if made else 0,
        mode=mode,
        flops=cost.forward.flops,
        bytes_accessed=cost.forward.bytes,
        cache_bytes=cost.cache_bytes,
        first_flops=cost.first_token.flops,
        token_flops=cost.next_token.flops,
        total_flops=cost.first_token.plus(cost.next_token, workload.output - 1).flops,
        build_flops=made.flops if made else None,
        elementwise_share=1 - cost.first_token.matmul_flops / cost.first_token.flops,
        first_bytes=cost.first_token.bytes,
        token_bytes=cost.next_token.bytes,
        first_saved_flops=1 - cached / without if made else None,
        first_saved_flops_vs_prompt_cache=1 - cached / prompt if mode == "gist_cache" else None,
        reuses=reuses(made.flops, without, cached) if made else None,
    )


def reuses(build: float, without: float, cached: float) -> int | None:
    """How many batches must use caches until making them has paid off; None if they never have."""
    return math.ceil(build / (without - cached)) if cached < without else None


def columns(rows: list[Row]) -> dict[str, tuple[str, Form]]:
    """Titles and forms of the columns that some row has a value for, by name."""
    return {name: x for name, x in _COLUMNS.items() if any(row.get(name) is not None for row in rows)}


def _in(unit: str) -> Callable[[float], str]:
    """Writes numbers with three digits in thousands or thousandths of the unit: 12.3 ms."""
    return lambda x: EngFormatter(unit)(float(f"{x:.3g}"))


def _percent(x: float) -> str:
    return f"{100 * x:.1f} %"


def _number(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:,.2f}" if x < 100 else f"{x:,.0f}"


# column -> its title, and how its values are written
_COLUMNS: dict[str, tuple[str, Form]] = {
    "instruction": ("instruction", _number),
    "input": ("input", _number),
    "output": ("output", _number),
    "batch": ("batch", _number),
    "gist_tokens": ("gist tokens", _number),
    "mode": ("mode", lambda mode: mode.replace("_", " ")),
    "first_flops": ("FLOPs to first token", _in("FLOPs")),
    "first_saved_flops": ("of them saved", _percent),
    "first_saved_flops_vs_prompt_cache": ("of the prompt cache's saved", _percent),
    "first_seconds": ("time to first token", _in("s")),
    "first_saved": ("of it saved", _percent),
    "first_saved_vs_prompt_cache": ("of the prompt cache's saved", _percent),
    "token_seconds": ("time of a token", _in("s")),
    "total_seconds": ("time to last token", _in("s")),
    "total_saved": ("of it saved", _percent),
    "total_saved_vs_prompt_cache": ("of the prompt cache's saved", _percent),
    "tokens_per_second": ("tokens per second", _number),
    **{f"{name}_first_seconds": (f"{name}, time to first token", _in("s")) for name in ACCELERATORS},
    **{f"{name}_prompts": (f"{name}, prompts that fit", _number) for name in ACCELERATORS},
    "reuses": ("reuses to pay off", _number),
    "cache_bytes": ("cache of a prompt", _in("B")),
    "prompts": ("prompts that fit", _number),
    "build_seconds": ("time to make the caches", _in("s")),
    "peak_bytes": ("memory in all", _in("B")),
    "elementwise_share": ("element-wise FLOPs", _percent),
    "agreement": ("equal output", _percent),
}
