"""Columns of the benchmark's results that people look at, and how their values are written."""

from collections.abc import Callable

from matplotlib.ticker import EngFormatter

from gist_jax.benchmark.devices import ACCELERATORS

Row = dict[str, str | int | float | None]
Form = Callable[..., str]

POINT = ("instruction", "input", "output", "batch", "gist_tokens")


def columns(rows: list[Row]) -> dict[str, tuple[str, Form]]:
    """Titles and forms of those that some row has a value for, by name."""
    return {name: x for name, x in _COLUMNS.items() if any(row.get(name) is not None for row in rows)}


def _in(unit: str) -> Callable[[float], str]:
    """Numbers with three digits in thousands or thousandths of the unit: 12.3 ms."""
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
