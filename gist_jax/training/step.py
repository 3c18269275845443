"""One training step: the loss, its gradient over microbatches, the update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gist_jax import gist
from gist_jax.inference.prefill import make_tokens
from gist_jax.models.adapter import Adapter, AdapterConfig
from gist_jax.models.attention import Implementation
from gist_jax.models.config import ModelConfig
from gist_jax.models.dropout import Dropout
from gist_jax.models.model import Tokens
from gist_jax.models.registry import merge
from gist_jax.models.stack import Params
from gist_jax.training.losses import LossConfig, cross_entropy, kl_divergence

# The fields of a batch that say where its tokens are; the rest is padding.
SEGMENTS = ("segment", "decoder_segment")


class TrainState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # int32 scalar: updates made
    params: Params  # the master weights of what is trained, the model or an adapter, float32
    opt_state: Any  # of optax


class StepConfig(NamedTuple):
    """How a step computes its loss, besides the model's configuration: hashable, static under jit."""

    condition: str
    gist_token: int
    space_token: int | None = None  # of the lone space before the gist tokens of T5's prompts
    dtype: str = "float32"  # of the computation
    param_dtype: str = "float32"  # of the parameters it is done with, and of their gradients
    remat: str = "none"
    attention: Implementation = "blocks"
    dropout: float = 0.0  # rate, for models that have it
    seed: int = 0  # of dropout
    adapter: AdapterConfig | None = None  # trained in place of the model
    loss: LossConfig = LossConfig()
    mask: gist.MaskConfig = gist.PAPER_MASK


def logits(
    params: Params,
    config: ModelConfig,
    step_config: StepConfig,
    batch: dict[str, jax.Array],
    adapter: Adapter | None = None,
    has_holes: bool = False,
) -> jax.Array:
    """Logits of every token that is to be predicted, float32 `[B, S, V]`.

    Args:
      params: of the model, with stacked layers.
      batch: tokens and segment, int `[B, T]`, and span, if it is given. Where the outputs are a
        sequence of their own, decoder_tokens and decoder_segment, int `[B, S]`, are what their decoder
        reads; otherwise S is T. Optionally dropout_keys, random keys `[B]`.
      has_holes: whether padding may stand inside of a segment.
    """
    dtype = jnp.dtype(step_config.dtype)

    def tokens(name: str, layout: gist.Layout, **options: Any) -> Tokens:
        # Tokens of a segment are as far apart as their slots, which are the same in all rows, unless
        # gist tokens were taken out between them.
        slots = jnp.arange(layout.segment.shape[1])[None]
        as_slots = config.relative_positions and not has_holes
        positions = slots if as_slots else gist.positions_of(layout.segment)
        options |= dict(condition=step_config.condition, gist_token=step_config.gist_token)
        return make_tokens(batch[name], layout, positions, dtype=dtype, **options)

    mask, where = step_config.mask, (batch["tokens"], step_config.gist_token, batch["segment"])
    layout = gist.layout_of(*where, batch.get("span"), mask.extra)
    order = dict(bidirectional=config.is_encoder_decoder, causal_gists=mask.causal_gists)
    sequences = [tokens("tokens", layout, **order)]
    if config.is_encoder_decoder:
        decoder_layout = gist.following(layout, batch["decoder_segment"])
        sequences.append(tokens("decoder_tokens", decoder_layout, before=layout))
    options: dict[str, Any] = {}
    if "dropout_keys" in batch:
        options["dropout"] = Dropout(step_config.dropout, batch["dropout_keys"])
    model = merge(params, config, adapter)
    hidden = model.forward(
        *sequences,
        dtype=dtype,
        remat=step_config.remat,
        implementation=step_config.attention,
        **options,
    )
    return model.logits(hidden)


def teacher_logits(
    params: Params, config: ModelConfig, step_config: StepConfig, batch: dict[str, jax.Array]
) -> jax.Array:
    """`logits` of a model that reads the whole prompts as if no gist tokens were in the rows."""
    layout = gist.layout_of(batch["tokens"], step_config.gist_token, batch["segment"])
    tokens, segment = gist.without_gists(batch["tokens"], layout, step_config.space_token)
    names = batch.keys() - {"dropout_keys"}
    read = {**{name: batch[name] for name in names}, "tokens": tokens, "segment": segment}
    unmasked = step_config._replace(condition="pos_control", mask=gist.PAPER_MASK)
    return logits(params, config, unmasked, read, has_holes=True)


def summed_loss(
    params: Params,
    config: ModelConfig,
    step_config: StepConfig,
    batch: dict[str, jax.Array],
    frozen: Params | None = None,
) -> jax.Array:
    """Sum over tokens of weight × loss, float32 scalar.

    Args:
      params: of the model, or of the adapter if `step_config` has one.
      batch: that of `logits`, and targets, int, and weights, float32, `[B, S]`. Where a weight is 0 the
        target does not matter.
      frozen: parameters that no gradient reaches: the base of an adapter, and the teacher.
    """
    options = step_config.loss
    if step_config.adapter is None:
        predicted = logits(params, config, step_config, batch)
    else:
        assert frozen is not None  # `make_program` says when there must be
        adapter = Adapter(params, step_config.adapter)
        predicted = logits(frozen, config, step_config, batch, adapter)
    # A gist token, of which a base need not know, is never a target that counts.
    targets = jnp.where(batch["weights"] > 0, batch["targets"], 0)
    labelled = options.cross_entropy if options.kind == "distill" else 1.0
    losses = labelled * cross_entropy(predicted, targets) if labelled else jnp.zeros(targets.shape)
    if options.kind == "distill":
        assert frozen is not None
        divergence = kl_divergence(
            teacher_logits(frozen, config, step_config, batch),
            predicted,
            hidden=step_config.gist_token,
            temperature=options.temperature,
            top=options.top,
        )
        losses = losses + (1 - labelled) * divergence
    return jnp.sum(losses * batch["weights"])


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    frozen: Params | None = None,
    *,
    config: ModelConfig,
    step_config: StepConfig,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update by the gradient of the token-weighted mean loss over the whole batch.

    With `accumulate` > 1 the batch is cut into that many microbatches. Their summed losses and
    gradients are added up and divided once by the weight of the whole batch: a mean of their means
    would weigh tokens in short microbatches more. Dropout, of models that have it, depends on the
    seed, the step and the row alone.

    Args:
      frozen: see `summed_loss`; not donated.

    Returns:
      The new state, and float32 scalars: loss, grad_norm (before clipping), tokens (not padding).
    """
    if step_config.dropout > 0:
        of_step = jax.random.fold_in(jax.random.key(step_config.seed), state.step)
        batch = {**batch, "dropout_keys": jax.random.split(of_step, batch["tokens"].shape[0])}
    # Rounded once, not at every use: the gradients have this dtype too.
    params = jax.tree.map(lambda x: x.astype(step_config.param_dtype), state.params)
    gradient = jax.value_and_grad(summed_loss)
    if accumulate == 1:
        loss, grads = gradient(params, config, step_config, batch, frozen)
    else:
        # Row i goes to microbatch i % accumulate, so that every device keeps its own rows.
        microbatches = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def add(total: tuple[jax.Array, Params], microbatch: dict[str, jax.Array]) -> tuple[Any, None]:
            part = gradient(params, config, step_config, microbatch, frozen)
            return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, part), None

        shapes = jnp.zeros(()), state.params
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
        (loss, grads), _ = jax.lax.scan(add, zeros, microbatches)

    weight = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
    grads = jax.tree.map(lambda g: g.astype(jnp.float32) / weight, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": loss / weight,
        "grad_norm": optax.tree.norm(grads),
        "tokens": sum(jnp.sum(batch[name] > 0, dtype=jnp.float32) for name in SEGMENTS if name in batch),
    }
    return TrainState(state.step + 1, params, opt_state), metrics
