"""A tokenizer's own chat template, with gist tokens where the system message ends."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from gist_jax.data.tokenization import Tokenizer
from gist_jax.errors import UserError, shortened

# Stand for the gist tokens and for a text: of Unicode's private use area, so in no text that means it.
_GISTS, _TEXT = "\ue000gists\ue001", "\ue000text\ue001"
# Some templates write today's date. It would give an instruction other ids every day: it is that which
# Llama 3's templates have where there is no clock.
_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"

_UNEQUAL = "the chat template does not write the same around every message"

# Texts to encode, and special tokens between them.
Segments = list[str | int]


class _Around(NamedTuple):
    """What a template writes before and after a text."""

    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """Writes an instruction as the system message, and an input as what the user says next.

    Special tokens that stand in a user's texts are text, not special tokens.
    """

    source: str  # in Jinja
    variables: tuple[tuple[str, str], ...]  # such as bos_token and its text
    special_ids: tuple[tuple[str, int], ...]

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer) -> "ChatTemplate":
        """The template that comes with a tokenizer.

        Raises:
          UserError: if it has none, or one that takes no system message, or that ends an answer with
            another token than the tokenizer's end of sequence.
        """
        source = tokenizer.backend.chat_template
        if source is None:
            raise UserError(
                "data.template is 'chat', but the tokenizer has no chat template: use a chat model's "
                "tokenizer.json with its tokenizer_config.json, or data.template='paper'"
            )
        backend = tokenizer.backend
        variables = tuple((name, text) for name, text in backend.special_tokens.items() if text)
        found = cls(source, variables, tuple(backend.special_ids().items()))
        ends = [x for x in _split(found._answer.after, dict(found.special_ids)) if isinstance(x, int)]
        if ends and ends[0] != tokenizer.eos_id:
            names = {number: text for text, number in found.special_ids}
            raise UserError(
                f"the chat template ends an answer with {names[ends[0]]}, which is not the tokenizer's "
                "end of sequence: set eos_token in tokenizer_config.json"
            )
        return found

    @property
    def name(self) -> str:
        """How model.json and gist caches name it: two that write differently have two names."""
        said = repr((self.source, self.variables)).encode()
        return f"chat-{hashlib.sha256(said).hexdigest()[:12]}"

    def instruction(self, instruction: str) -> Segments:
        """From the beginning to where the gist tokens stand."""
        head, _ = self._halves(instruction.rstrip(), _TEXT)
        before = self._before_system
        if not head.startswith(before):
            raise UserError(_UNEQUAL)
        return self._segments(before, head[len(before) :], "")

    def continuation(self, instruction: str) -> Segments:
        """What a system message goes on with behind gist tokens: an instruction, in a new line."""
        return ["\n" + instruction.rstrip()]

    def input(self, text: str) -> tuple[Segments, Segments]:
        """From behind the gist tokens to where the answer begins, and the same up to the text's end."""
        begins = self._answer.before if self._answer.before.strip() else ""
        if not text.strip():
            _, rest = self._halves(_TEXT, "")
            return self._segments(rest + begins, "", ""), []
        _, rest = self._halves(_TEXT, text)
        before, after = self._user
        if not (rest.startswith(before) and rest.endswith(after)):
            raise UserError(_UNEQUAL)
        written = rest[len(before) : len(rest) - len(after)]
        return self._segments(before, written, after + begins), self._segments(before, written, "")

    def output(self, text: str) -> str:
        """An answer's text as the template writes it, with the space that it may put before it."""
        space = "" if self._answer.before.strip() else self._answer.before
        return space + (text.strip() if self._trims_answers else text)

    def before_input(self) -> Segments:
        """What is between the gist tokens and the text of an input."""
        return self._segments(self._user.before, "", "")

    @functools.cached_property
    def _before_system(self) -> str:
        return self._halves(_TEXT, "user")[0].partition(_TEXT)[0]

    @functools.cached_property
    def _user(self) -> _Around:
        _, rest = self._halves("system", _TEXT)
        before, _, after = rest.partition(_TEXT)
        return _Around(before, after)

    @functools.cached_property
    def _answer(self) -> _Around:
        """What stands before an answer and not yet where it is asked for, such as an empty thought."""
        asked = [("system", "system"), ("user", "user")]
        before, _, after = self._render([*asked, ("assistant", _TEXT)], False).partition(_TEXT)
        asking = self._render(asked, True)
        if not before.startswith(asking):
            raise UserError("the chat template asks for an answer in another way than it writes one")
        return _Around(before[len(asking) :], after)

    @functools.cached_property
    def _trims_answers(self) -> bool:
        messages = [("system", "system"), ("user", "user"), ("assistant", f" {_TEXT} ")]
        return f" {_TEXT} " not in self._render(messages, False)

    @functools.cached_property
    def _needs_user(self) -> bool:
        try:
            self._render([("system", "system")], True)
        except UserError:
            return True
        return False

    def _halves(self, instruction: str, text: str) -> tuple[str, str]:
        """What is written before the gist tokens, and after them."""
        messages = [("system", instruction + _GISTS)]
        if text or self._needs_user:
            messages.append(("user", text))
        written = self._render(messages, True)
        if written.count(_GISTS) != 1:
            raise UserError("the chat template does not write the system message once")
        head, _, rest = written.partition(_GISTS)
        return head, rest

    def _render(self, messages: Collection[tuple[str, str]], asks: bool) -> str:
        # Takes a second to import.
        from transformers.utils.chat_template_utils import render_jinja_template

        chat = [{"role": role, "content": content} for role, content in messages]
        variables: dict[str, Any] = dict(self.variables)
        try:
            written = render_jinja_template(
                [chat], chat_template=_DATE + self.source, add_generation_prompt=asks, **variables
            )[0]
        except Exception as error:  # of Jinja, and what a template raises itself
            raise UserError(f"the chat template fails: {shortened(error)}") from None
        return written[0]

    def _segments(self, before: str, text: str, after: str) -> Segments:
        """Special tokens are those of the template; a text is joined to what stands beside it."""
        special = dict(self.special_ids)
        joined: Segments = []
        for part in [*_split(before, special), text, *_split(after, special)]:
            if isinstance(part, str) and joined and isinstance(joined[-1], str):
                joined[-1] += part
            elif part != "":
                joined.append(part)
        return joined


def _split(text: str, special: Mapping[str, int]) -> Segments:
    """A template's text, cut at special tokens."""
    if not special:
        return [text]
    longest_first = sorted(special, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    return [special.get(part, part) if i % 2 else part for i, part in enumerate(parts)]
