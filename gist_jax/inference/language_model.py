"""A model with its tokenizer: text in, text out."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gist_jax.data.prompt_template import Prompt, PromptTemplate
from gist_jax.data.tokenization import Tokenizer
from gist_jax.errors import UserError
from gist_jax.gist import PAPER_MASK, MaskConfig
from gist_jax.inference.batch import generate_ids
from gist_jax.inference.checks import as_texts, check_cache, check_positions, one_each
from gist_jax.inference.compress import compressed, encoded_after
from gist_jax.inference.continuous import Programs, Row
from gist_jax.inference.fidelity import Fidelity, fidelities
from gist_jax.inference.fingerprint import adapter_fingerprint, base_fingerprint
from gist_jax.inference.gist_cache import GistCache, Origin
from gist_jax.inference.parameters import adapter_for_inference, as_exported, for_inference
from gist_jax.inference.rebase import prefix_of, rebased
from gist_jax.inference.requests import (
    Request,
    Result,
    answer,
    as_stops,
    stream,
    write_until,
)
from gist_jax.inference.sampling import Sampling, make_sampling
from gist_jax.interop.export import export
from gist_jax.interop.prefix import Prefix
from gist_jax.models.adapter import Adapter
from gist_jax.models.config import ModelConfig
from gist_jax.models.stack import Params


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model, its parameters and its tokenizer: what `gist_jax.load` returns.

    `from_params` makes one of training's parameters.
    """

    config: ModelConfig
    params: Params  # of the base, with unrolled layers, in the dtype of the computation
    tokenizer: Tokenizer
    num_gist_tokens: int  # the most that it was trained with
    condition: str  # the attention mask the model was trained with
    template_name: str = "paper"  # of how prompts are written, see `PromptTemplate.name`
    mesh: Mesh | None = None  # of the devices that share rows and parameters; None: one device
    gist_token_choices: tuple[int, ...] = ()  # other numbers it was trained with
    adapter: Adapter | None = None  # what acts at gist tokens, in the form of the base's parameters
    mask: MaskConfig = PAPER_MASK  # what else it was trained with

    @classmethod
    def from_params(
        cls,
        params: Params,
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        num_gist_tokens: int,
        condition: str = "gist",
        template: str = "paper",
        dtype: str = "float32",
        mesh: Mesh | None = None,
        gist_token_choices: tuple[int, ...] = (),
        adapter: Adapter | None = None,
        mask: MaskConfig = PAPER_MASK,
        donate: bool = False,
    ) -> "LanguageModel":
        """Casts stacked parameters once and unrolls their layers, see `inference.parameters`.

        Args:
          mesh: of the devices that share rows (its axis data) and parameters (its axis tensor).
          donate: gives up `params`.
        """
        params = for_inference(params, dtype, config, mesh, donate=donate)
        settings = config, params, tokenizer, num_gist_tokens, condition, template, mesh
        model = cls(*settings, gist_token_choices, mask=mask)
        return model if adapter is None else model.with_adapter(adapter)

    def with_adapter(self, adapter: Adapter) -> "LanguageModel":
        """The same model with an adapter, whose layers are stacked, at its gist tokens."""
        unrolled = adapter_for_inference(adapter, self.dtype, self.config, self.mesh)
        return dataclasses.replace(self, adapter=unrolled)

    def with_gist_tokens(self, count: int) -> "LanguageModel":
        """The same model with prompts of another number of gist tokens.

        Raises:
          UserError: if it was not trained with so many.
        """
        choices = self.gist_token_choices or (self.num_gist_tokens,)
        if count not in choices:
            raise UserError(
                f"the model was trained with k = {', '.join(map(str, choices))}, not {count}"
            )
        return dataclasses.replace(self, num_gist_tokens=count)

    @functools.cached_property
    def origin(self) -> Origin:
        """What this model's gist caches say of it; those of others are refused."""
        base, tokenizer = base_fingerprint(self.params, self.config), self.tokenizer.fingerprint()
        adapter = "" if self.adapter is None else adapter_fingerprint(self.adapter, self.config)
        return Origin(base, tokenizer, adapter, template=self.template.name)

    @property
    def dtype(self) -> str:
        """The dtype of the parameters and the computation."""
        return self.params["embedding"].dtype.name

    def __repr__(self) -> str:
        shapes = jax.eval_shape(functools.partial(as_exported, config=self.config), self.params)
        count = sum(x.size for x in jax.tree.leaves(shapes))
        described = f"{self.config.family}, {count:,} parameters, {self.dtype}"
        k = " or ".join(map(str, self.gist_token_choices)) or self.num_gist_tokens
        adapter = "" if self.adapter is None else f", adapter of rank {self.adapter.config.rank}"
        return f"LanguageModel({described}, k = {k}, {self.condition}{adapter})"

    def export(self, directory: str | pathlib.Path, dtype: str = "float32") -> None:
        """Writes a directory in Hugging Face format, see `gist_jax.interop.export`.

        Args:
          directory: which must not exist yet.
          dtype: of the weights in it, "float32", "bfloat16" or "float16".

        Raises:
          UserError: of an adapter, which acts at gist tokens only and is no part of any weights.
        """
        if self.adapter is not None:
            raise UserError(
                "an adapter acts at gist tokens only, so that it cannot be merged into its base"
            )
        settings: dict[str, Any] = dict(
            num_gist_tokens=self.num_gist_tokens,
            condition=self.condition,
            template=self.template.name,
            dtype=dtype,
            mask=self.mask,
        )
        params = as_exported(self.params, self.config)
        export(directory, params, self.config, self.tokenizer, **settings)

    @functools.cached_property
    def template(self) -> PromptTemplate:
        """How this model's prompts are written."""
        settings = self.tokenizer, self.num_gist_tokens, self.template_name, self.mask.placement
        return PromptTemplate.of_model(self.config, *settings)

    def compress(
        self,
        instructions: str | Sequence[str],
        *,
        num_gist_tokens: int | None = None,
        after: GistCache | None = None,
    ) -> GistCache:
        """Compresses an instruction, or several of any lengths in one batch.

        Args:
          instructions: a text, or B of them.
          num_gist_tokens: one of the numbers that the model was trained with; None: the largest.
          after: gist caches of instructions before these, one for each or one for all. The new
            instructions see their gist tokens, and the result holds both.

        Returns:
          A row for every instruction: B rows, one for a text, of k gist tokens.

        Raises:
          UserError: if there is none, one is empty or longer than the model's positions, or the
            model has no gist token or was not trained to use it, or not with so many, or did not make
            `after`.
        """
        model = self if num_gist_tokens is None else self.with_gist_tokens(num_gist_tokens)
        model._check_gist_token()
        return compressed(model, as_texts("instruction", instructions), self.origin, after)

    def fidelity(
        self,
        instructions: str | Sequence[str],
        inputs: str | Sequence[str],
        *,
        reference: "LanguageModel | None" = None,
        max_new_tokens: int = 64,
    ) -> list[Fidelity]:
        """Compares writing from gists with writing from whole prompts, unmasked, by a reference.

        Args:
          instructions: one for each input, or one for all.
          reference: another model with this tokenizer, such as a pos_control run. None: the base, if an
            adapter makes the gists, and otherwise this model with its mask untouched.
          max_new_tokens: tokens of an output that are compared.

        Returns:
          What is lost of every distinct instruction, in order: KL and top-1 agreement by token.

        Raises:
          UserError: as `compress` and `generate` do, or if the reference has another tokenizer.
        """
        return fidelities(self, instructions, inputs, reference, max_new_tokens)

    def rebase(self, gists: GistCache) -> GistCache:
        """The same gist caches at positions 0 … k - 1, of which they use up k in place of n + k.

        Raises:
          UserError: if they are of another model, or their gist tokens do not stand in one run.
        """
        check_cache(gists, self.origin, self.config, len(gists))
        return rebased(gists, self.config)

    def prefix(self, gists: GistCache) -> Prefix:
        """Gist caches as a prefix that stock engines take, see `gist_jax.interop.prefix`.

        Raises:
          UserError: as `rebase` does, and of an encoder-decoder.
        """
        check_cache(gists, self.origin, self.config, len(gists))
        described = {**dataclasses.asdict(self.origin), "instructions": gists.instructions}
        return prefix_of(gists, self.config, described)

    def encode_inputs(self, gists: GistCache, inputs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What an encoder leaves of gist caches and inputs, for the decoder of a stock T5.

        Returns:
          Final states, float32 `[B, G + T, D]`, and which of them count, int32 `[B, G + T]`: of
          transformers `encoder_outputs` and `attention_mask`.

        Raises:
          UserError: if there is no encoder, or the caches do not fit the inputs or the model.
        """
        if not self.config.is_encoder_decoder:
            raise UserError("this model has no encoder: its gist caches are prefixes, see prefix")
        rows = [self.template.input_ids(text) for text in as_texts("input", inputs)]
        check_cache(gists, self.origin, self.config, len(rows))
        return encoded_after(self, gists, rows)

    def generate(
        self,
        gists: GistCache | None = None,
        *,
        inputs: str | Sequence[str],
        instructions: str | Sequence[str] | None = None,
        max_new_tokens: int = 64,
        stop: str | Sequence[str] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str | list[str]:
        """Writes an output for every input: a text for a text, a list for a list.

        Args:
          gists: compressed instructions, one for each input or one for all.
          inputs: may be empty texts, where the instruction needs none.
          instructions: in place of `gists`: whole prompts, read under the mask the model was trained
            with. One for each input or one for all.
          max_new_tokens: stop there if there was no end of sequence before.
          stop: texts before the first of which an output ends.
          temperature: 0 takes the likeliest token; above 0 samples.
          top_k: sample among the k likeliest tokens; 0 for all.
          top_p: sample among the likeliest tokens that make up this probability.
          seed: of sampling. A row's output does not depend on the other rows.

        Returns:
          Texts in the order of the inputs, without what ended them.

        Raises:
          UserError: if the arguments do not fit each other or the model.
        """
        if (gists is None) == (instructions is None):
            raise UserError("give either gists or instructions")
        rows = [self.template.input_ids(text) for text in as_texts("input", inputs)]
        if instructions is not None:
            heads = one_each("instruction", as_texts("instruction", instructions), len(rows))
            rows = [self.instruction_ids(head) + row for head, row in zip(heads, rows, strict=True)]
        elif gists is not None:
            check_cache(gists, self.origin, self.config, len(rows))
        sampling = make_sampling(temperature, top_k, top_p)
        if stops := as_stops(stop):
            self.check_lengths(rows, gists, max_new_tokens)
            settings = max_new_tokens, sampling, seed
            prefixes = [None if gists is None else gists[i % len(gists)] for i in range(len(rows))]
            asked = [Row(ids, prefixes[i], *settings, number=i) for i, ids in enumerate(rows)]
            outputs = write_until(self, asked, stops)
        else:
            ids = self.generate_ids(rows, gists, max_new_tokens, sampling, seed)
            outputs = [self.tokenizer.decode(row) for row in ids]
        return outputs[0] if isinstance(inputs, str) else outputs

    def generate_many(
        self,
        requests: Iterable[Request],
        *,
        slots: int = 16,
        library: Mapping[str, GistCache] | None = None,
    ) -> Iterator[Result]:
        """Writes the outputs of any number of requests, some of them at a time.

        Args:
          requests: see `gist_jax.inference.requests`; taken from the iterable as slots become free.
          slots: requests at a time.
          library: gists by name, such as a `GistLibrary`, for requests that name one.

        Yields:
          Results in the order in which they are complete; one with an `error` for a request that cannot
          be answered.

        Raises:
          UserError: if there are no slots.
        """
        return answer(self, requests, slots, library or {})

    def stream(self, gists: GistCache | None = None, input: str = "", **options: Any) -> Iterator[str]:
        """Writes an output piece by piece; the pieces together are what `generate` writes.

        Args:
          gists: a compressed instruction, or None with an `instruction` among the options.
          options: of `Request`.

        Yields:
          Texts of whole characters, as soon as nothing can change them.

        Raises:
          UserError: if the arguments do not fit each other or the model.
        """
        return stream(self, Request(input, gists, **options))

    @functools.cached_property
    def programs(self) -> Programs:
        """This model as the programs of `gist_jax.inference.slots` take it."""
        tokenizer = self.tokenizer
        return Programs(
            self.params,
            self.config,
            self.condition,
            gist_token=tokenizer.gist_id,
            eos_token=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            adapter=self.adapter,
            mesh=self.mesh,
            mask=self.mask,
            gives_spans=self.template.gives_spans,
        )

    def generate_ids(
        self,
        rows: Sequence[Sequence[int]],
        gists: GistCache | None,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """The token ids, int32 `[len(rows), max_new_tokens]`, that continue rows of token ids.

        Raises:
          UserError: if there are more tokens than the model has positions.
        """
        self.check_lengths(rows, gists, max_new_tokens)
        return generate_ids(self, rows, gists, max_new_tokens, sampling, seed)

    def check_lengths(
        self, rows: Sequence[Sequence[int]], gists: GistCache | None, max_new_tokens: int
    ) -> None:
        """Raises a UserError unless rows of token ids, after gist caches if any, can be continued."""
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, but is {max_new_tokens}")
        before = np.zeros(1, int) if gists is None else np.asarray(gists.offset)
        longest = int(np.max(before + [len(row) for row in rows]))
        check_positions(longest + max_new_tokens, self.config)

    def instruction_ids(self, text: str) -> Prompt:
        """The ids of an instruction with its gist tokens, if the model knows them.

        Raises:
          UserError: if the model should know them and does not.
        """
        if self.num_gist_tokens > 0:  # a model that was finetuned without them reads plain prompts
            self._check_gist_token()
        return self.template.instruction_ids(text)

    def _check_gist_token(self) -> None:
        missing = self.adapter is None and self.tokenizer.gist_id >= self.config.vocab_size
        if missing or self.num_gist_tokens < 1:
            raise UserError(
                "this model has no gist token: train it with gist_jax.train before compressing with it"
            )
