"""What training minimizes at every token: cross-entropy, or the distance from a teacher.

Shape letters: B batch, S tokens that are predicted, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

KINDS = ("cross_entropy", "distill")
LOSS_TOKENS = OUTPUT, ALL = "output", "all"
_NEVER = -1e30  # a logit whose probability is 0, finite so that 0 times it is 0


class LossConfig(NamedTuple):
    """What a step minimizes: hashable, static under jit."""

    kind: str = "cross_entropy"
    tokens: str = OUTPUT  # which have a loss: those of outputs, or all but gist tokens
    temperature: float = 1.0  # by which both models' logits are divided in distillation
    top: int = 0  # so many of the teacher's likeliest tokens, all others being one class; 0: all tokens
    cross_entropy: float = 0.0  # weight of cross-entropy in distillation; what remains is the KL's


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Minus the log-probability of every target: float32 `[B, S]` of `[B, S, V]` and int `[B, S]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def kl_divergence(
    teacher: jax.Array, student: jax.Array, *, hidden: int, temperature: float = 1.0, top: int = 0
) -> jax.Array:
    """KL(teacher ‖ student) of the next token's distributions, times the square of the temperature.

    The square makes gradients independent of the temperature in their size (Hinton et al., arXiv
    1503.02531, section 2.1).

    Args:
      teacher, student: logits, float32 `[B, S, V]`. Gradients reach the student alone.
      hidden: the id of a token that neither may write: the gist token.
      top: if above 0, of so many of the teacher's likeliest tokens, and all others as one class.

    Returns:
      float32 `[B, S]`, in nats.
    """
    shown = jnp.arange(teacher.shape[-1]) != hidden

    def log_probabilities(logits: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(jnp.where(shown, logits / temperature, _NEVER))

    p, q = log_probabilities(jax.lax.stop_gradient(teacher)), log_probabilities(student)
    terms = jnp.exp(p) * (p - q)
    if 0 < top < teacher.shape[-1]:
        least = jax.lax.top_k(p, top)[0][..., -1:]
        chosen = p >= least

        def rest(x: jax.Array) -> jax.Array:
            return jax.nn.logsumexp(jnp.where(chosen, _NEVER, x), axis=-1)

        of_rest = jnp.exp(rest(p)) * (rest(p) - rest(q))
        divergence = jnp.sum(jnp.where(chosen, terms, 0), axis=-1) + of_rest
    else:
        divergence = jnp.sum(terms, axis=-1)
    return divergence * temperature**2
