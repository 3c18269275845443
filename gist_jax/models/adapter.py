"""Low-rank weights that act at gist positions only (LoRA, arXiv 2106.09685), beside a frozen base.

At a gist token a projection with weights W gives W x + (alpha / rank) U (D x), where D and U are the
pair "down" and "up"; every other token runs through W alone. The gist token has an embedding of the
adapter's own, so that a base which never had one can be used. Of an encoder-decoder the encoder is
adapted: the decoder has no gist tokens.

    {"gist_embedding": [D],
     "layers": {"attention": {"query": {"low_rank": {"down": [L, D, R], "up": [L, R, N, H]}}, …}, …}}

Shape letters: R rank, D model dim, L layers, N heads, H head dim, V vocabulary.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from gist_jax.models.layers import LowRank, Projection
from gist_jax.models.stack import Params

# The projections of a layer that can have a pair, by their names.
TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
_ADAPTED = ("layers", "encoder")  # the parts of a model, at its top, whose layers are adapted


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The shape of an adapter."""

    rank: int  # (R); 0: the gist token's embedding alone
    alpha: float = 16.0  # a pair's output is multiplied by alpha / rank
    targets: tuple[str, ...] = TARGETS  # those that a model does not have do not count

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 < self.alpha < math.inf:
            raise ValueError(f"an adapter has no rank {self.rank} with alpha {self.alpha}")
        if not self.targets or set(self.targets) - set(TARGETS):
            raise ValueError(
                f"the targets of an adapter are {self.targets}, not of {', '.join(TARGETS)}"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter with its parameters, whose layers are stacked or unrolled as the base's are."""

    params: Params
    config: AdapterConfig = dataclasses.field(metadata=dict(static=True))


def add_adapter(model: Any, config: AdapterConfig, rngs: nnx.Rngs) -> None:
    """Gives a model the parameters of an adapter; the pairs change nothing yet."""
    embedding = model.embedding[...]
    model.gist_embedding = nnx.Param(jnp.zeros(embedding.shape[1:], embedding.dtype), axes=("hidden",))
    if not config.rank:
        return
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, Projection) and path[0] in _ADAPTED and path[-1] in config.targets:
            module.low_rank = LowRank(module, config.rank, config.alpha / config.rank, rngs)


def only_adapter(tree: Params) -> Params:
    """What of a tree for a model with an adapter is the adapter's."""
    flat = flatten_dict(tree)
    return unflatten_dict({k: x for k, x in flat.items() if k[0] == "gist_embedding" or "low_rank" in k})


def united(base: Params, adapter: Params) -> Params:
    """One tree of the parameters of a base and of its adapter."""
    return unflatten_dict(flatten_dict(base) | flatten_dict(adapter))


def mean_embedding(embedding: jax.Array, num_tokens: int) -> jax.Array:
    """`[D]`, the mean of the first so many rows of `[V, D]`: what a new token begins with."""
    mean: Any = jnp.mean(embedding[:num_tokens].astype(jnp.float32), axis=0)
    return mean
