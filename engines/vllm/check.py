"""Compares what vLLM writes after gist caches with what gist_jax writes, token for token.

python engines/vllm/check.py --model=HF_DIR --prefix=FILE --expected=FILE.json

The JSON file has, for every row of the prefix, `input_ids` without placeholders and the `tokens` to
come. The script needs nothing of gist_jax, so that both may have environments of their own; README.md
shows how to make the files.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from safetensors import safe_open
from vllm import LLM, SamplingParams


def main() -> None:
    """Runs the command."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--prefix", required=True)
    arguments.add_argument("--expected", required=True, type=pathlib.Path)
    arguments.add_argument("--block_size", type=int, default=32)
    options = arguments.parse_args()
    file = os.path.abspath(options.prefix)
    with safe_open(file, framework="pt") as opened:
        counts = opened.get_tensor("attention_mask").sum(dim=1).tolist()
    expected = json.loads(options.expected.read_text())
    llm = LLM(
        model=options.model,
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=4,
        block_size=options.block_size,
        kv_transfer_config={
            "kv_connector": "GistConnector",
            "kv_connector_module_path": "gist_connector",
            "kv_role": "kv_both",
        },
    )

    def written(with_gists: bool) -> list[list[int]]:
        prompts, sampling = [], []
        for row, (count, wanted) in enumerate(zip(counts, expected, strict=True)):
            ids = [3] * count + wanted["input_ids"]  # placeholders may be any token
            salt = f"{file} {row}" if with_gists else "none"  # or prompts of equal ids share blocks
            prompts.append({"prompt_token_ids": ids, "cache_salt": salt})
            named = {"kv_transfer_params": {"gist": file, "row": row}} if with_gists else None
            sampling.append(
                SamplingParams(
                    temperature=0,
                    max_tokens=len(wanted["tokens"]),
                    ignore_eos=True,
                    detokenize=False,
                    extra_args=named,
                )
            )
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    tokens = [wanted["tokens"] for wanted in expected]
    for attempt in ("first", "second"):  # which finds blocks of the first
        equal = [a == b for a, b in zip(written(True), tokens, strict=True)]
        print(f"{attempt} time: {sum(equal)} of {len(equal)} rows have equal tokens", flush=True)
        assert all(equal)
    without = [a == b for a, b in zip(written(False), tokens, strict=True)]
    print(f"without the gists: {sum(without)} of {len(without)}", flush=True)


if __name__ == "__main__":
    main()
