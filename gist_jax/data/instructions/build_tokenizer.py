"""The corpus's word-level tokenizer. To rewrite the file it is shipped as, run

    python -m gist_jax.data.instructions.build_tokenizer

The vocabulary is closed: every word the corpus can use, and no other. It has no `<GIST>`: that
token is added to any tokenizer, this one too, when a model is made ready for gisting.
"""

import pathlib

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from gist_jax.data.instructions.corpus import TOKENIZER_FILE, human_examples
from gist_jax.data.instructions.families import FAMILIES
from gist_jax.data.instructions.words import lexicon
from gist_jax.io import atomic_write

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
PUNCTUATION = (".", ",", ":", ";", "?", "!")
PROMPT_WORDS = ("instruction", "input", "output")


def build_tokenizer() -> Tokenizer:
    """Builds the tokenizer from the words of the lexicon, the wordings and human.json."""
    tokenizer = Tokenizer(models.WordLevel({}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    words = {*PROMPT_WORDS, *lexicon()}
    for family in FAMILIES:
        words |= family.template_words()
    for text in (text for example in human_examples() for text in example.values()):
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text.lower()))
    tokens = (*SPECIAL_TOKENS, *PUNCTUATION, *sorted(words.difference(PUNCTUATION)))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer.model = models.WordLevel(vocabulary, unk_token="<unk>")
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def tokenizer_text() -> str:
    """The text of the tokenizer file that the package ships."""
    return build_tokenizer().to_str(pretty=True) + "\n"


def main() -> None:
    """Rewrites tokenizer.json."""
    with atomic_write(pathlib.Path(__file__).with_name(TOKENIZER_FILE)) as tmp:
        tmp.write_text(tokenizer_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
