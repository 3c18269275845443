"""The examples of a run as ids, tokenized once."""

import dataclasses

from absl import logging
from ml_collections import ConfigDict

from gist_jax.data import instructions
from gist_jax.data.documents import Documents
from gist_jax.data.mixture import Mixture
from gist_jax.data.prompt_template import EncodedExample, PromptTemplate
from gist_jax.data.rows import count_cut
from gist_jax.data.sources import Examples, first
from gist_jax.data.token_cache import TokenCache, token_cache
from gist_jax.data.windows import Windows
from gist_jax.errors import UserError
from gist_jax.training.distributed import is_first

Encoded = Examples | TokenCache | Windows  # what `training_batches` takes


def training_examples(
    config: ConfigDict, examples: Examples, template: PromptTemplate, fingerprint: str
) -> Encoded:
    """The examples with their ids from disk, unless the config or what they are forbids it.

    Args:
      fingerprint: of the data.

    Raises:
      UserError: if documents are not to be kept on disk.
    """
    if isinstance(examples, Mixture):
        parts = zip(examples.parts, examples.fingerprints, strict=True)
        encoded = tuple(training_examples(config, part, template, of) for part, of in parts)
        return dataclasses.replace(examples, parts=encoded)
    if isinstance(examples, Documents):
        return _windows(config, examples, template, f"{fingerprint} train")
    if not config.data.cache or isinstance(examples, instructions.Corpus):
        return examples
    cache = token_cache(examples, template, f"{fingerprint} train")
    sizes = config.data.max_length, config.data.max_output_length
    if (cut := count_cut(cache.lengths(), template, *sizes)) and is_first():
        logging.warning("%d of %d training examples are too long, and are cut", cut, len(cache))
    return cache


def examples_to_evaluate(
    config: ConfigDict, examples: Examples, template: PromptTemplate, fingerprint: str
) -> list[EncodedExample]:
    """The first examples of a split, as many as the config asks for.

    Of documents it is as many windows, evenly spread; of a mixture each part has its share.

    Args:
      fingerprint: of the split.
    """

    def chosen(part: Examples, of: str, count: int) -> list[EncodedExample]:
        if isinstance(part, Documents):
            return _windows(config, part, template, of).spread(count)
        return template.encode(first(part, count))

    count = config.evaluation.num_examples
    if not isinstance(examples, Mixture):
        return chosen(examples, fingerprint, count)
    found: list[EncodedExample] = []
    parts = zip(examples.parts, examples.fingerprints, examples.weights, strict=True)
    for number, (part, of, share) in enumerate(parts):
        found += chosen(part, f"{fingerprint} {number} {of}", round(count * share))
    return found


def _windows(
    config: ConfigDict, documents: Documents, template: PromptTemplate, fingerprint: str
) -> Windows:
    data = config.data
    if not data.cache:
        raise UserError(
            "config.data.cache is False, but documents are cut into rows by their ids, which are kept"
        )
    cache = token_cache(documents, template, fingerprint)
    return Windows(cache, template, documents.compress, data.max_length, data.max_output_length)
