"""A KV connector that puts gist caches into stock vLLM.

A request's prompt begins with k placeholders, one for each gist token. vLLM asks a connector how many
of a prompt's first tokens it has keys and values for; this one has them for the placeholders, reads
them from a file of `gist_jax.convert prefix`, and writes them where vLLM has made room. See README.md.
"""

import dataclasses
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)
from vllm.model_executor.models.utils import extract_layer_index


@dataclasses.dataclass
class Load:
    """Gist tokens of one request that are to be written."""

    file: str
    row: int  # of the file
    start: int  # the first gist token, counted from the first of the row
    slots: list[int]  # in vLLM's cache, one for each


@dataclasses.dataclass
class Loads(KVConnectorMetadata):
    """What the scheduler tells the worker before a step."""

    loads: list[Load]


def gist_of(request: Any) -> tuple[str, int] | None:
    """The file and row that a request names in `kv_transfer_params`; None if it names none."""
    named = request.kv_transfer_params or {}
    return (named["gist"], int(named.get("row", 0))) if "gist" in named else None


class GistConnector(KVConnectorBase_V1):
    """Serves the keys and values of gist tokens; keeps none of what vLLM computes."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._block_size = vllm_config.cache_config.block_size
        self._found: dict[str, int] = {}  # request -> how many of its tokens vLLM has itself
        self._loads: list[Load] = []  # for the next step

    # In the scheduler.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        if (named := gist_of(request)) is None:
            return 0, False
        file, row = named
        with safe_open(file, framework="pt") as opened:
            count = int(opened.get_tensor("attention_mask")[row].sum())
        if request.num_prompt_tokens <= count:
            raise ValueError(f"the prompt must have more than the {count} placeholders of {file}")
        self._found[request.request_id] = num_computed_tokens
        return max(0, count - num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        start = self._found.pop(request.request_id, 0)
        if num_external_tokens <= 0:
            return
        ids, size = blocks.get_block_ids()[0], self._block_size
        tokens = range(start, start + num_external_tokens)
        slots = [ids[token // size] * size + token % size for token in tokens]
        self._loads.append(Load(*gist_of(request), start, slots))

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        loads, self._loads = self._loads, []
        return Loads(loads)

    # In the worker.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        for load in self._get_connector_metadata().loads:
            with safe_open(load.file, framework="pt") as opened:
                keys, values = (opened.get_tensor(name)[:, load.row] for name in ("keys", "values"))
                mask = opened.get_tensor("attention_mask")[load.row]
            # A row with fewer gist tokens than others has them in its last slots.
            first = int(len(mask) - mask.sum()) + load.start
            taken = slice(first, first + len(load.slots))
            for name, layer in forward_context.no_compile_layers.items():
                if (cache := getattr(layer, "kv_cache", None)) is None:
                    continue
                i = extract_layer_index(name)
                slots = torch.tensor(load.slots, dtype=torch.int64, device=cache.device)
                # [heads, tokens, dim] -> [tokens, heads, dim]; the backend knows how its cache lies.
                written = (
                    x[i, :, taken].transpose(0, 1).contiguous().to(cache.device, cache.dtype)
                    for x in (keys, values)
                )
                layer.impl.do_kv_cache_update(layer, *written, cache, slots)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Does nothing: `start_load_kv` has written all."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Does nothing: what vLLM computes stays in vLLM."""

    def wait_for_save(self) -> None:
        """Does nothing."""
