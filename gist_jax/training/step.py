"""One training step: the loss, its gradient over microbatches, the update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gist_jax import gist
from gist_jax.models import llama
from gist_jax.models.config import LlamaConfig


class TrainState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # int32 scalar: updates made
    params: llama.Params
    optimizer: Any  # of optax


class Objective(NamedTuple):
    """What is minimized, besides the model's configuration: hashable, static under jit."""

    condition: str
    gist_token: int
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"


def summed_loss(
    params: llama.Params, config: LlamaConfig, objective: Objective, batch: dict[str, jax.Array]
) -> jax.Array:
    """Sum over tokens of weight × cross-entropy, float32 scalar.

    Args:
      batch: tokens, targets and segment, int `[B, T]`, and weights, float32 `[B, T]`. The target of
        a token is the token that follows it; where the weight is 0 it does not matter.
    """
    layout = gist.layout_of(batch["tokens"], objective.gist_token, batch["segment"])
    bias = gist.mask_to_bias(gist.decoder_mask(layout, objective.condition), jnp.dtype(objective.dtype))
    hidden, _ = llama.forward(
        params,
        config,
        batch["tokens"],
        gist.positions_of(batch["segment"]),
        bias,
        remat=objective.remat,
        dtype=objective.dtype,
        implementation=objective.attention,
    )
    scores = llama.logits(params, config, hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["targets"])
    return jnp.sum(losses * batch["weights"])


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    config: LlamaConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update by the gradient of the token-weighted mean loss over the whole batch.

    With `accumulate` > 1 the batch is cut into that many microbatches. Their summed losses and
    gradients are added up and divided once by the weight of the whole batch: a mean of their means
    would weigh tokens in short microbatches more.

    Returns:
      The new state, and float32 scalars: loss, grad_norm (before clipping), tokens (not padding).
    """
    gradient = jax.value_and_grad(summed_loss)
    if accumulate == 1:
        loss, grads = gradient(state.params, config, objective, batch)
    else:
        # Row i goes to microbatch i % accumulate, so that every device keeps its own rows.
        microbatches = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def add(total, microbatch):
            part = gradient(state.params, config, objective, microbatch)
            return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, part), None

        shapes = jnp.zeros(()), state.params
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
        (loss, grads), _ = jax.lax.scan(add, zeros, microbatches)

    weight = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
    grads = jax.tree.map(lambda g, p: (g / weight).astype(p.dtype), grads, state.params)
    updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": loss / weight,
        "grad_norm": optax.tree.norm(grads),
        "tokens": jnp.sum(batch["segment"] > 0).astype(jnp.float32),
    }
    return TrainState(state.step + 1, params, optimizer_state), metrics
