"""What is compared with transformers, and our side of it.

Shape letters: B batch, T tokens of a row.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from gist_jax.inference.buckets import bucket
from gist_jax.inference.continuous import Programs as SlotPrograms
from gist_jax.inference.continuous import Row, write_rows
from gist_jax.inference.decode import generate
from gist_jax.inference.parameters import for_inference
from gist_jax.models.config import LlamaConfig
from gist_jax.models.stack import Params
from gist_jax.sharding import make_mesh, place_rows
from gist_jax.training.program import make_program

NO_TOKEN = -1  # in place of the end of sequence: every output has its full length


class Programs(NamedTuple):
    """What one implementation does with a model's weights."""

    # int32 [B, T], the tokens of every step -> a function that makes a step and returns its mean loss
    trainer: Callable[[np.ndarray], Callable[[], float]]
    # Prompts, int32 [B, T] without padding, and a number n of new tokens -> the likeliest, int [B, n].
    generate: Callable[[np.ndarray, int], np.ndarray]
    # Prompts of any lengths, the new tokens of each, how many are answered at a time -> the outputs.
    answer: Callable[[Sequence[np.ndarray], Sequence[int], int], list[np.ndarray]]


def batches(
    prompts: Sequence[np.ndarray], counts: Sequence[int], batch: int
) -> Iterator[tuple[Sequence[np.ndarray], Sequence[int]]]:
    """Requests in the order in which they come, so many at a time."""
    for start in range(0, len(prompts), batch):
        yield prompts[start : start + batch], counts[start : start + batch]


def shortened_outputs(outputs: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """The tokens that each request asked for, of outputs as long as the longest of them."""
    return [output[:count] for output, count in zip(outputs, counts, strict=False)]


def our_programs(params: Params, config: LlamaConfig, settings: ConfigDict) -> Programs:
    """The programs of this package, on one CPU.

    Args:
      params: with stacked layers.
      settings: of the training step.
    """
    split = for_inference(params, params["embedding"].dtype.name, config, None)
    slots = SlotPrograms(split, config, "gist", NO_TOKEN, NO_TOKEN, 0, None, None)

    def generate_rows(tokens: np.ndarray, count: int) -> np.ndarray:
        limits = np.int32(count), np.int32(NO_TOKEN), np.uint32(0)
        most = bucket(count, smallest=16)
        shape: dict[str, Any] = dict(config=config, condition="gist", gist_token=NO_TOKEN, max_new=most)
        output = generate(split, tokens, np.ones_like(tokens), None, *limits, None, **shape)
        return np.asarray(output)[:, :count]

    def answer(prompts: Sequence[np.ndarray], counts: Sequence[int], batch: int) -> list[np.ndarray]:
        rows = [Row(ids.tolist(), None, count) for ids, count in zip(prompts, counts, strict=True)]
        for _ in write_rows(slots, rows, batch):
            pass
        return [np.array(row.output) for row in rows]

    def trainer(tokens: np.ndarray) -> Callable[[], float]:
        own = settings.copy_and_resolve_references()
        own.data.update(batch_size=len(tokens), max_length=tokens.shape[1])
        program = make_program(own, config, NO_TOKEN, make_mesh(own.mesh, jax.devices()[:1]))
        weights = np.ones(tokens.shape, np.float32)
        weights[:, -1] = 0  # nothing follows
        arrays = {
            "tokens": tokens,
            "segment": np.ones_like(tokens),
            "targets": np.roll(tokens, -1, axis=1),
            "weights": weights,
        }
        batch = place_rows(arrays, program.batch_sharding, len(tokens))
        with jax.set_mesh(program.mesh):
            state = program.create(jax.tree.map(lambda x: x.copy(), params))

        def step() -> float:
            nonlocal state
            with jax.set_mesh(program.mesh):
                state, metrics = program.step(state, batch)
            return float(metrics["loss"])

        return step

    return Programs(trainer, generate_rows, answer)
