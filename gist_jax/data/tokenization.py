"""Tokenizers with a gist token."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any, Protocol

import sentencepiece
import tokenizers

from gist_jax.errors import UserError, shortened
from gist_jax.io import read_json
from gist_jax.storage import as_path, fetch, is_bucket

GIST = "<GIST>"
SPACE = "▁"
CHAT_TEMPLATE = "chat_template.jinja"
# The SentencePiece file of T5 goes with sentinel ids after its pieces, which it does not contain.
T5_FILE, T5_EXTRA_IDS = "spiece.model", 100
# Of tokenizers made here, and of a tokenizer.json that names none.
SPECIAL_TOKENS: dict[str, str | None] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


class _Backend(Protocol):
    special_tokens: dict[str, str | None]
    chat_template: str | None

    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...
    def special_ids(self) -> dict[str, int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def save(self, directory: pathlib.Path) -> None: ...
    def serialized(self) -> bytes: ...


class _JsonBackend:
    """A tokenizer.json of the `tokenizers` library."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        special_tokens: dict[str, str | None],
        chat_template: str | None,
    ):
        self.tokenizer, self.special_tokens = tokenizer, special_tokens
        self.chat_template = chat_template
        tokenizer.add_special_tokens([GIST])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.__setstate__(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A user's text that happens to contain "<GIST>" or "</s>" is text, not a special token. What is
        # sent to a process forgets that.
        self.tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises bare Exception, as where a model lacks its [UNK]
            raise UserError(f"the tokenizer cannot encode a text: {shortened(error)}") from None

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def special_ids(self) -> dict[str, int]:
        added = self.tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def serialized(self) -> bytes:
        return self.tokenizer.to_str().encode()

    def save(self, directory: pathlib.Path) -> None:
        self.tokenizer.save(str(directory / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special_tokens}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
        if self.chat_template is not None:
            (directory / CHAT_TEMPLATE).write_text(self.chat_template, encoding="utf-8")


class _SentencePieceBackend:
    """A SentencePiece .model file."""

    special_tokens: dict[str, str | None] = {}
    chat_template: str | None = None

    def __init__(self, path: pathlib.Path):
        self.path, self.is_t5 = path, path.name == T5_FILE
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.gist_id = self.processor.get_piece_size() + (T5_EXTRA_IDS if self.is_t5 else 0)

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.processor.encode(texts, num_threads=-1)

    def special_ids(self) -> dict[str, int]:
        return {}

    def decode(self, ids: list[int]) -> str:
        size, unknown = self.processor.get_piece_size(), self.processor.unk_id()
        return self.processor.decode([i for i in ids if i < size and i != unknown])

    def serialized(self) -> bytes:
        return self.processor.serialized_model_proto()

    def save(self, directory: pathlib.Path) -> None:
        target = directory / (T5_FILE if self.is_t5 else "tokenizer.model")
        if target.resolve() != self.path.resolve():
            shutil.copyfile(self.path, target)
        # For transformers; what we read ourselves is the file above.
        pieces = self.processor
        named = {"bos_token": pieces.bos_id(), "eos_token": pieces.eos_id()}
        named |= {"pad_token": pieces.pad_id(), "unk_token": pieces.unk_id()}
        gist = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        settings = {
            "tokenizer_class": "T5Tokenizer" if self.is_t5 else "LlamaTokenizer",
            **{name: pieces.id_to_piece(i) for name, i in named.items() if i >= 0},
            "added_tokens_decoder": {self.gist_id: {"content": GIST, "special": True, **gist}},
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
        (directory / "added_tokens.json").write_text(json.dumps({GIST: self.gist_id}))


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back, and the ids of the special tokens."""

    backend: _Backend
    vocab_size: int  # with the gist token
    gist_id: int
    eos_id: int
    bos_id: int | None
    pad_id: int
    space_id: int | None = None  # a white space alone, where that is a token

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without special tokens."""
        return self.backend.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of many plain texts, on all cores."""
        return self.backend.encode_batch(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids up to the first end of sequence, special tokens left out."""
        ids = [int(i) for i in ids]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        special = {self.gist_id, self.pad_id, self.bos_id}
        return self.backend.decode([i for i in ids if i not in special]).strip()

    def num_bytes(self, ids: Iterable[int]) -> int:
        """How many bytes of UTF-8 the ids stand for; special tokens stand for none."""
        special = {self.gist_id, self.pad_id, self.bos_id, self.eos_id}
        return len(self.backend.decode([int(i) for i in ids if i not in special]).encode())

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes files into a directory that `load_tokenizer` reads."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.backend.save(directory)

    def fingerprint(self) -> str:
        """A short hash of all that decides which ids a text gets."""
        ids = f"{self.vocab_size} {self.gist_id} {self.eos_id} {self.bos_id} {self.space_id}".encode()
        return hashlib.sha256(ids + self.backend.serialized()).hexdigest()[:16]


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """Loads a Hugging Face tokenizer directory, a tokenizer.json, or a SentencePiece file.

    Raises:
      ValueError: if there is no such file, it cannot be read, or it has no end of sequence.
    """
    path = as_path(path)
    if is_bucket(path) and path.is_dir():
        path = fetch(path)
    if path.is_dir():
        names = (T5_FILE, "tokenizer.json", "tokenizer.model")
        found = [path / name for name in names if (path / name).exists()]
        if not found:
            return _load_converted(path)
        path = found[0]
    if not path.exists():
        raise UserError(f"there is no tokenizer at {path}")
    try:
        return _load_json(path) if path.suffix == ".json" else _load_sentencepiece(path)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # of damaged files: texts that are no UTF-8
        raise UserError(f"cannot read the tokenizer {path}: {shortened(error)}") from None


def _load_sentencepiece(path: pathlib.Path) -> Tokenizer:
    backend = _SentencePieceBackend(path)
    pieces = backend.processor
    if pieces.eos_id() < 0:
        raise UserError(f"the tokenizer {path} has no end-of-sequence token")
    bos, pad, space = pieces.bos_id(), pieces.pad_id(), pieces.piece_to_id(SPACE)
    return Tokenizer(
        backend,
        vocab_size=backend.gist_id + 1,
        gist_id=backend.gist_id,
        eos_id=pieces.eos_id(),
        bos_id=bos if bos >= 0 else None,
        pad_id=max(pad, 0),
        space_id=space if space != pieces.unk_id() else None,
    )


def _load_json(path: pathlib.Path) -> Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"cannot read the tokenizer {path}: {shortened(error)}") from None
    return from_tokenizers(tokenizer, _special_tokens(path.parent), _chat_template(path.parent))


def _load_converted(directory: pathlib.Path) -> Tokenizer:
    """A directory in an older layout (vocab.json, merges.txt, …), converted by transformers."""
    import transformers  # takes seconds to import

    try:
        converted = transformers.AutoTokenizer.from_pretrained(str(directory))
    except Exception as error:  # of many kinds
        raise UserError(f"{directory} holds no tokenizer: {shortened(error)}") from None
    named = {name: getattr(converted, name) for name in SPECIAL_TOKENS}
    return from_tokenizers(converted.backend_tokenizer, named, converted.chat_template)


def _special_tokens(directory: pathlib.Path) -> dict[str, str | None]:
    """bos_token, eos_token and pad_token as the files beside a tokenizer.json name them."""
    named = dict(SPECIAL_TOKENS)
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / file).exists():
            fields = read_json(directory / file)
            for name in named:
                token = fields.get(name, named[name])
                token = token.get("content") if isinstance(token, dict) else token
                if not isinstance(token, str | None):
                    raise UserError(f"{directory / file} has no token as its {name}: {shortened(token)}")
                named[name] = token
    return named


def _chat_template(directory: pathlib.Path) -> str | None:
    """The chat template beside a tokenizer.json: a file of its own, or a field of its config."""
    if (directory / CHAT_TEMPLATE).exists():
        return (directory / CHAT_TEMPLATE).read_text(encoding="utf-8")
    if not (directory / "tokenizer_config.json").exists():
        return None
    found = read_json(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several, by name
        by_name = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = by_name.get("default")
    return found if isinstance(found, str) else None


def from_tokenizers(
    tokenizer: tokenizers.Tokenizer,
    special_tokens: dict[str, str | None],
    chat_template: str | None = None,
) -> Tokenizer:
    """Wraps a tokenizer of the `tokenizers` library, adding `<GIST>` if it has none.

    Args:
      tokenizer: is changed.
      special_tokens: text of bos_token, eos_token and pad_token; None for one that does not exist.
      chat_template: in Jinja, see `gist_jax.data.chat_template`.

    Raises:
      ValueError: if the end of sequence is not in the vocabulary.
    """
    if chat_template is not None:  # line ends as they are read from a file
        chat_template = chat_template.replace("\r\n", "\n")
    backend = _JsonBackend(tokenizer, special_tokens, chat_template)
    bos, eos, pad = (
        tokenizer.token_to_id(special_tokens.get(name) or "")
        for name in ("bos_token", "eos_token", "pad_token")
    )
    if eos is None:
        raise UserError("the tokenizer names no end-of-sequence token that is in its vocabulary")
    gist_id = tokenizer.token_to_id(GIST)
    assert gist_id is not None  # it has just been added
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    space = tokenizer.token_to_id(SPACE)
    return Tokenizer(backend, size, gist_id, eos, bos, pad if pad is not None else eos, space)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer of `vocab_size` entries (without the gist token)."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return from_tokenizers(tokenizer, SPECIAL_TOKENS)
