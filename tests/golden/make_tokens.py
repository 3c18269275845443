"""Makes tests/golden/tokens.json, and checks all published token ids with the real tokenizers.

python tests/golden/make_tokens.py DIRECTORY

Neither the published texts nor the tokenizers can be shipped. So of some examples the published ids are
kept, and where in a prompt the instruction and the input are.
"""

import json
import pathlib
import sys

from gist_jax.data import sources, tokenization
from gist_jax.data.prompt_template import PromptTemplate, clean_up_tokenization_spaces

TARGET = pathlib.Path(__file__).with_name("tokens.json")
# Most ids of a T5 prompt and of its output, as published; LLaMA's are never cut.
LENGTHS = {"validation_human": (384, 384), "validation_seen": (128, 256)}
NO_LIMIT = 10**6
CUT = 100
# The first examples, and one whose T5 prompt is cut.
KEPT = {"validation_human/k=1": range(6), "validation_seen/k=3": [*range(6), 24]}


def main() -> None:
    """Runs the script."""
    shared = pathlib.Path(sys.argv[1])
    golden = json.loads((shared / "golden" / "tokens.json").read_text())
    tokenizers = {
        "llama": tokenization.load_tokenizer(shared / "tokenizers" / "llama" / "tokenizer.model"),
        "t5": tokenization.load_tokenizer(shared / "tokenizers" / "t5" / "spiece.model"),
    }
    kept: dict[str, list[dict]] = {name: [] for name in tokenizers}
    for name, published in golden["splits"].items():
        split, k = name.split("/k=")
        examples = sources.read_examples(shared / "data" / "alpaca_plus" / f"{split}.json")
        for case in published:
            example = examples[case["index"]]
            for family, tokenizer in tokenizers.items():
                made = of_family(family, tokenizer, int(k), LENGTHS[split], example, case)
                if case["index"] in KEPT.get(name, ()):
                    kept[family].append(made)
    tables = []
    for family, tokenizer in tokenizers.items():
        assert tokenizer.gist_id == golden[f"{family}_gist_id"]
        fields = ("gist_id", "eos_id", "bos_id", "pad_id", "space_id", "vocab_size")
        settings = json.dumps({field: getattr(tokenizer, field) for field in fields})
        cases = ",\n".join(json.dumps(case) for case in kept[family])
        tables.append(f'"{family}": {{"tokenizer": {settings}, "cases": [\n{cases}\n]}}')
    TARGET.write_text("{" + ",\n".join(tables) + "}\n")


def of_family(family, tokenizer, k, lengths, example, case) -> dict:
    """The ids of one example, whose prompt and output must be the published ones."""
    if family == "llama":
        template, lengths = PromptTemplate(tokenizer, k), (NO_LIMIT, NO_LIMIT)
        published = case["llama_prompt"], case["llama_completion"]
    else:
        template = PromptTemplate(tokenizer, k, decoder_start_token=0)
        published = case["t5_input_ids"], case["t5_labels"]
    assert template.prompt_ids(example["instruction"], example["input"], lengths[0]) == published[0]
    assert template.output_ids(example["output"], lengths[1]) == published[1]

    def ids(text: str) -> list[int]:
        text = text.strip()
        return tokenizer.encode(text if family == "llama" else clean_up_tokenization_spaces(text))

    instruction = ids(f"Instruction: {example['instruction']}")[len(ids("Instruction:")) :]
    read = ids(f"Input: {example['input']}")[len(ids("Input:")) :]
    whole = template.prompt_ids(example["instruction"], example["input"], NO_LIMIT)
    if cut := len(whole) - len(published[0]):  # what was cut is not published: another id stands for it
        read[-cut:] = [CUT] * cut
    parts = {"instruction": instruction, "input": read}
    limits = {"max_prompt": lengths[0], "max_output": lengths[1]}
    return {"k": k, **limits, **parts, "prompt": published[0], "output": published[1]}


if __name__ == "__main__":
    main()
