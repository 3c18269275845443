"""Which fields of a config.json are read, which do not matter, and which ask for something else."""

from collections.abc import Collection, Mapping
from typing import Any

from gist_jax.errors import UserError

# They describe files, tokens, training or other tasks, and change nothing of what a model computes.
_HARMLESS = """
    _attn_implementation_autoset _name_or_path architectures attention_dropout bos_token_id
    chunk_size_feed_forward classifier_dropout cls_token_id decoder_start_token_id dtype
    eos_token_id finetuning_task gist id2label initializer_factor initializer_range is_llama_config
    label2id max_length max_sequence_length max_window_layers model_type n_positions output_past
    pad_token_id problem_type return_dict sep_token_id task_specific_params tokenizer_class
    torch_dtype transformers.js_config transformers_version unk_token_id unsloth_version use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())


def check_fields(
    fields: Mapping[str, Any], read: Collection[str], supported: Mapping[str, Collection[Any]]
) -> None:
    """Refuses fields that ask for what is not computed here.

    Args:
      fields: of a config.json.
      read: names of those that are read.
      supported: the values of others that ask for nothing more than what is computed.

    Raises:
      UserError: naming a field. One of an unknown name may ask for nothing: be null, false or empty.
    """
    for name, value in fields.items():
        if name in supported:
            if value not in supported[name]:
                raise UserError(f"config field {name} = {value!r} is not supported")
        elif name not in read and name not in HARMLESS and value:
            raise UserError(f"config field {name} = {value!r} is not known, so it is not supported")
