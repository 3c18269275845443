"""How far what a model writes from gists is from what a reference writes from the whole prompts.

The reference writes greedily after the whole prompt, unmasked. Before every token that it writes, the
distribution of the next token from the gist, after the same tokens, is compared with its own: by the
Kullback-Leibler divergence, and by whether the likeliest token is the same.

Shape letters: B batch, T tokens of a prompt, W tokens that are written, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from gist_jax.errors import UserError
from gist_jax.gist import MaskConfig
from gist_jax.inference.buckets import bucket, padded_rows, padded_spans
from gist_jax.inference.checks import as_texts, check_positions, one_each
from gist_jax.inference.decode import decode_token
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.prefill import Prefilled, prefill
from gist_jax.models.adapter import Adapter
from gist_jax.models.config import ModelConfig
from gist_jax.models.model import DecodeState, Model
from gist_jax.models.registry import merge
from gist_jax.models.stack import Params
from gist_jax.sharding import in_mesh

if TYPE_CHECKING:
    from gist_jax.inference.language_model import LanguageModel

BATCH = 16  # outputs at a time
_NEVER = -1e30  # a logit whose probability is 0, finite so that 0 times it is 0


class Parting(NamedTuple):
    """A token before which the gist would go another way than the reference."""

    written: str  # by the reference so far
    reference: str  # what it writes next; empty: it ends
    gist: str  # what is likeliest from the gist; empty: the end
    kl: float  # in nats


@dataclasses.dataclass(frozen=True)
class ComparedOutput:
    """An output of the reference, compared token by token; its end counts as a token."""

    input: str
    text: str
    kl: np.ndarray  # float32 [W], in nats
    partings: tuple[Parting, ...]


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How much of an instruction its gist keeps, by the outputs for some inputs."""

    instruction: str
    outputs: tuple[ComparedOutput, ...]

    @property
    def kl(self) -> float:
        """The mean divergence of a token, in nats; 0: the gist says what the whole prompt says."""
        return float(np.mean(np.concatenate([output.kl for output in self.outputs])))

    @property
    def agreement(self) -> float:
        """The share of tokens that are the likeliest from the gist too."""
        tokens = sum(len(output.kl) for output in self.outputs)
        return 1 - sum(len(output.partings) for output in self.outputs) / tokens

    def __str__(self) -> str:
        lines = [f"KL {self.kl:.4f}, top-1 {100 * self.agreement:.1f} %: {self.instruction!r}"]
        for output in self.outputs:
            for parting in output.partings:
                after = f"  input {output.input!r}, after {parting.written!r}"
                ways = f"{parting.reference!r}, from the gist {parting.gist!r}"
                lines.append(f"{after}: {ways} (KL {parting.kl:.2f})")
        return "\n".join(lines)


def fidelities(
    lm: "LanguageModel",
    instructions: str | Sequence[str],
    inputs: str | Sequence[str],
    reference: "LanguageModel | None",
    max_new_tokens: int,
) -> list[Fidelity]:
    """The fidelity of every distinct instruction, in order; see `LanguageModel.fidelity`."""
    given = as_texts("input", inputs)
    texts = one_each("instruction", as_texts("instruction", instructions), len(given))
    compared = compare(lm, texts, given, reference, max_new_tokens)
    outputs: dict[str, list[ComparedOutput]] = {}
    for text, output in zip(texts, compared, strict=True):
        outputs.setdefault(text, []).append(output)
    return [Fidelity(text, tuple(of_text)) for text, of_text in outputs.items()]


def compare(
    lm: "LanguageModel",
    instructions: Sequence[str],
    inputs: Sequence[str],
    reference: "LanguageModel | None" = None,
    max_new_tokens: int = 64,
) -> list[ComparedOutput]:
    """The outputs for pairs of an instruction and an input, in their order.

    A model that is not trained to compress is compared as it reads whole prompts.

    Raises:
      UserError: as `LanguageModel.compress` and `generate`, or if the reference has another tokenizer.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, but is {max_new_tokens}")
    unmasked = _unmasked(lm, reference)
    outputs = []
    with tqdm(total=len(inputs), desc="comparing", unit="output", leave=False) as bar:
        for start in range(0, len(inputs), BATCH):
            pairs = instructions[start : start + BATCH], inputs[start : start + BATCH]
            readers = [_reader(each, *pairs, max_new_tokens) for each in (unmasked, lm)]
            with in_mesh(lm.mesh):
                written = _compare(
                    *readers,
                    np.int32(max_new_tokens),
                    np.int32(lm.tokenizer.eos_id),
                    gist_token=lm.tokenizer.gist_id,
                    max_new=bucket(max_new_tokens, smallest=16),
                )
            rows = (np.asarray(x)[: len(pairs[0]), :max_new_tokens] for x in written)
            for text, *row in zip(pairs[1], *rows, strict=True):
                outputs.append(_output(lm, text, *row))
            bar.update(len(pairs[0]))
    return outputs


def _unmasked(lm: "LanguageModel", reference: "LanguageModel | None") -> "LanguageModel":
    """What reads whole prompts unmasked.

    That is the reference; or the base of the model's adapter, which knows no gist tokens; or the model.
    """
    if reference is not None:
        if reference.tokenizer.fingerprint() != lm.tokenizer.fingerprint():
            raise UserError("the reference has another tokenizer than the model: their tokens differ")
        if reference.mesh != lm.mesh:
            raise UserError("the reference lies on another mesh than the model")
        return dataclasses.replace(reference, condition="pos_control")
    if lm.adapter is None:
        return dataclasses.replace(lm, condition="pos_control")
    plain: dict[str, Any] = dict(adapter=None, num_gist_tokens=0, gist_token_choices=())
    return dataclasses.replace(lm, condition="pos_control", **plain)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Reader:
    """A model with the prompts that it reads; arguments of `decode.generate`."""

    params: Params
    tokens: Any
    segment: Any
    prefix: GistCache | None
    span: np.ndarray | None
    adapter: Adapter | None
    config: ModelConfig = dataclasses.field(metadata=dict(static=True))
    condition: str = dataclasses.field(metadata=dict(static=True))
    mask: MaskConfig = dataclasses.field(metadata=dict(static=True))

    def begin(self, gist_token: int, max_new: int) -> tuple[Model, Prefilled, DecodeState]:
        """The model that goes on, and what it has read."""
        settings: dict[str, Any] = dict(condition=self.condition, mask=self.mask, span=self.span)
        prefilled, state = prefill(
            merge(self.params, self.config, self.adapter),
            *(self.tokens, self.segment, self.prefix),
            gist_token=gist_token,
            max_new=max_new,
            **settings,
        )
        return merge(self.params, self.config), prefilled, state


def _reader(
    lm: "LanguageModel", instructions: Sequence[str], inputs: Sequence[str], max_new_tokens: int
) -> _Reader:
    """Reads inputs after gist caches, or whole prompts under any other mask."""
    rows: list[list[int]] = [lm.template.input_ids(text) for text in inputs]
    prefix, before = None, np.zeros(1, int)
    if lm.condition == "gist":
        prefix = lm.compress(instructions).bare(lm.dtype, lm.mesh)
        before = np.asarray(prefix.offset)
    else:
        rows = [lm.template.instruction_ids(a) + b for a, b in zip(instructions, rows, strict=True)]
    check_positions(int(np.max(before + [len(row) for row in rows])) + max_new_tokens, lm.config)
    tokens, segment = padded_rows(rows, lm.tokenizer.pad_id)
    if prefix is not None:
        prefix = prefix[np.arange(len(tokens)) % len(prefix)]
    span = padded_spans(lm.template.gives_spans, rows, tokens.shape)
    adapter = lm.adapter if prefix is None else None
    state = lm.config, lm.condition, lm.mask
    return _Reader(lm.params, tokens, segment, prefix, span, adapter, *state)


class _Loop(NamedTuple):
    """What the loop of `_compare` carries; pairs are of the reference and of the other."""

    step: jax.Array  # int32 scalar: tokens written so far
    hidden: tuple[jax.Array, jax.Array]  # [B, 1, D], predict the next token
    state: tuple[DecodeState, DecodeState]
    written: jax.Array  # int32 [B, W]
    likeliest: jax.Array  # int32 [B, W], of the other
    kl: jax.Array  # float32 [B, W]
    done: jax.Array  # bool [B]


@functools.partial(jax.jit, static_argnames=("gist_token", "max_new"))
def _compare(
    reference: _Reader,
    other: _Reader,
    limit: jax.Array,
    eos_token: jax.Array,
    *,
    gist_token: int,
    max_new: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Writes with the reference, and feeds the same tokens to the other.

    Neither is let write a gist token, or one that the other does not have.

    Returns:
      `written`, `likeliest` and `kl` of `_Loop`. What comes after an end of sequence does not count.
    """
    begun = [reader.begin(gist_token, max_new) for reader in (reference, other)]
    size = min(reader.config.vocab_size for reader in (reference, other))
    shown = jnp.arange(size) != gist_token

    def log_probabilities(model: Model, hidden: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(jnp.where(shown, model.logits(hidden)[:, 0, :size], _NEVER))

    def body(loop: _Loop) -> _Loop:
        p, q = (log_probabilities(b[0], x) for b, x in zip(begun, loop.hidden, strict=True))
        token = jnp.where(loop.done, eos_token, jnp.argmax(p, axis=-1).astype(jnp.int32))
        divergence = optax.losses.kl_divergence_with_log_targets(q, p)
        new = token, jnp.argmax(q, axis=-1).astype(jnp.int32), divergence
        (first, first_state), (second, second_state) = (
            decode_token(model, prefilled, state, token)
            for (model, prefilled, _), state in zip(begun, loop.state, strict=True)
        )
        written, likeliest, kl = (
            jax.lax.dynamic_update_slice(x, column[:, None], (0, loop.step))
            for x, column in zip((loop.written, loop.likeliest, loop.kl), new, strict=True)
        )
        hidden, states, done = (first, second), (first_state, second_state), token == eos_token
        return _Loop(loop.step + 1, hidden, states, written, likeliest, kl, loop.done | done)

    batch = reference.tokens.shape[0]
    ids = jnp.full((batch, max_new), eos_token, jnp.int32)
    (_, first, first_state), (_, second, second_state) = begun
    hidden, state = (first.hidden, second.hidden), (first_state, second_state)
    kl, nothing_to_read = jnp.zeros((batch, max_new)), jnp.all(reference.segment == 0, axis=1)
    loop = _Loop(jnp.int32(0), hidden, state, ids, ids, kl, nothing_to_read)
    loop = jax.lax.while_loop(lambda loop: (loop.step < limit) & ~jnp.all(loop.done), body, loop)
    return loop.written, loop.likeliest, loop.kl


def _output(
    lm: "LanguageModel", text: str, written: np.ndarray, likeliest: np.ndarray, kl: np.ndarray
) -> ComparedOutput:
    """An output with its texts; arrays `[W]`."""
    ends = np.flatnonzero(written == lm.tokenizer.eos_id)
    length = int(ends[0]) + 1 if len(ends) else len(written)

    def words(ids: Iterable[int]) -> str:
        return lm.tokenizer.decode(ids)

    partings = tuple(
        Parting(words(written[:i]), words(written[i : i + 1]), words(likeliest[i : i + 1]), float(kl[i]))
        for i in np.flatnonzero(written[:length] != likeliest[:length])
    )
    return ComparedOutput(text, words(written[:length]), kl[:length], partings)
