"""FLOPs of matmuls, by hand: a formula per family, to check what is counted on programs.

A matmul `[m, k] @ [k, n]` has 2·m·n·k. Attention counts as it is computed, masked or not.

Shape letters: B batch, T tokens read a row, P cached, W written, N heads, K key/value heads, H head
dim, D model dim, F feed-forward dim, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from gist_jax.models.config import LlamaConfig, ModelConfig, T5Config


class Shape(NamedTuple):
    """The sizes of a batch that a program works on."""

    batch: int
    tokens: int  # read, or already read, a row
    cached: int  # slots of the cache before them; of gist tokens, where their cache is made
    caches: int  # rows of the cache: as many as there are in the batch, or 1 for all
    mode: str  # one of workload.MODES
    output: int  # slots for what is written


def analytic_flops(config: ModelConfig, program: str, shape: Shape) -> int:
    """FLOPs of the matmuls of one of `workload.PROGRAMS`, by its name."""
    formulas: dict[str, Callable[[Any, str, Shape], int]] = {"llama": _llama, "t5": _t5}
    return formulas[config.family](config, program, shape)


def _head(config: ModelConfig, tokens: int) -> int:
    return 2 * tokens * config.hidden_size * config.vocab_size


def _llama(config: LlamaConfig, program: str, shape: Shape) -> int:
    d, f, n, h = config.hidden_size, config.intermediate_size, config.num_heads, config.head_dim
    of_token = 4 * d * (n + config.num_kv_heads) * h + 6 * d * f

    def layers(tokens: int, keys: int) -> int:
        return config.num_layers * tokens * of_layer(keys)

    def of_layer(keys: int) -> int:
        return of_token + 4 * n * keys * h

    b, t, p, w = shape.batch, shape.tokens, shape.cached, shape.output
    kept = 4 * d * config.num_kv_heads * h  # the keys and values of a token

    def spared(tokens: int, keys: int) -> int:  # in the last layer, by tokens that only leave those
        return tokens * (of_layer(keys) - kept)

    match program:
        case "make_cache":
            return layers(b * t, t) - spared(b * t, t)
        case "forward":
            return layers(b * t, p + t) + _head(config, b * t)
        case "first_token":
            return layers(b * t, p + t) - spared(b * (t - 1), p + t) + _head(config, b)
        case "next_token":
            return layers(b, p + t + w) + _head(config, b)
        case _:
            raise ValueError(f"unknown program {program!r}")


def _t5(config: T5Config, program: str, shape: Shape) -> int:
    d, n, h = config.hidden_size, config.num_heads, config.head_dim
    projections = 2 * d * n * h  # of a token: each of query, key, value and output
    feed_forward = (6 if config.gated_gelu else 4) * d * config.intermediate_size
    b, t, p, w = shape.batch, shape.tokens, shape.cached, shape.output

    def encoder(keys: int) -> int:
        return config.num_layers * b * t * (4 * projections + feed_forward + 4 * n * keys * h)

    def cross_kv(tokens: int) -> int:  # keys and values of cross-attention
        return config.num_decoder_layers * tokens * 2 * projections

    def decoder(slots: int) -> int:  # one token of every output
        attended = 4 * n * (slots + p + t) * h
        return config.num_decoder_layers * b * (6 * projections + feed_forward + attended)

    # Of gist tokens the cache has the encoder's states.
    computed = b * t + (shape.caches * p if shape.mode == "gist_cache" else 0)
    match program:
        case "make_cache":
            return encoder(t) + (cross_kv(b * t) if shape.mode == "prompt_cache" else 0)
        case "forward" | "first_token":
            slots = 1 if program == "forward" else w
            return encoder(p + t) + cross_kv(computed) + decoder(slots) + _head(config, b)
        case "next_token":
            return decoder(w) + _head(config, b)
        case _:
            raise ValueError(f"unknown program {program!r}")
