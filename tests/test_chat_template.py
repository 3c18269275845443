"""Chat templates: ids are those of `apply_chat_template`, gist tokens where the system message ends."""

import dataclasses

import jax
import pytest
import tokenizers
import transformers
from tiny import TINY

from gist_jax.data.prompt_template import CHAT, PromptTemplate
from gist_jax.data.tokenization import GIST, from_tokenizers, load_tokenizer, train_bpe
from gist_jax.errors import UserError
from gist_jax.inference.language_model import LanguageModel
from gist_jax.models import registry

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim }}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN3 = QWEN.replace(
    "message.content +",
    "('<think>\\n\\n</think>\\n\\n' if message.role == 'assistant' else '') + message.content +",
)
# The system message is written into what the user says first.
MISTRAL = """{{- bos_token }}
{%- set system = messages[0].content + '\n\n' %}
{%- if messages|length < 2 %}{{ raise_exception('no user') }}{%- endif %}
{%- for message in messages[1:] %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + message.content + '[/INST]' }}
    {%- else %}{{- ' ' + message.content|trim + eos_token }}{%- endif %}
{%- endfor %}
"""
FORMS = {
    "qwen3": (QWEN3, None, "<|im_end|>", ["<|im_start|>"]),
    "mistral": (MISTRAL, "<s>", "</s>", ["[INST]", "[/INST]"]),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
    "qwen": (QWEN, None, "<|im_end|>", ["<|im_start|>"]),
}
TEXTS = ["Instruction: add tea!\nSay it twice. system user", "a cup, please \n\n two  cups", "assistant"]


@pytest.fixture(params=list(FORMS))
def directory(request, tmp_path):
    """A chat model's tokenizer, as transformers writes it."""
    template, bos, eos, others = FORMS[request.param]
    made = tokenizers.Tokenizer.from_str(train_bpe(TEXTS * 3, 320).backend.tokenizer.to_str())
    # As these models have it: no space is put before a text, and line breaks end a word.
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.add_special_tokens([x for x in [bos, eos, *others] if x])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token="<pad>"
    )
    fast.chat_template = template
    fast.save_pretrained(tmp_path)
    return tmp_path


def stock_ids(directory, instruction, text, output=None):
    """Ids of transformers, with a gist token that was added to its tokenizer."""
    stock = transformers.AutoTokenizer.from_pretrained(directory)
    stock.add_special_tokens({"additional_special_tokens": [GIST]})
    messages = [{"role": "system", "content": instruction + 2 * GIST}]
    if text.strip() or stock.bos_token == "<s>":  # the form of Mistral has no chat without a user
        messages += [{"role": "user", "content": text.strip() and text}]
    messages += [{"role": "assistant", "content": output}] if output else []
    return stock.apply_chat_template(messages, add_generation_prompt=output is None)["input_ids"]


def thought(tokenizer):
    """Ids of the empty thought that Qwen3 writes before an answer, and not where it asks for one."""
    thinks = "<think>" in tokenizer.backend.chat_template
    return tokenizer.encode("<think>\n\n</think>\n\n") if thinks else []


@pytest.mark.parametrize("text", [*TEXTS[1:], "", "  Input  "])
def test_ids_are_those_of_the_chat_template(directory, text, tmp_path):
    tokenizer = load_tokenizer(directory)
    tokenizer.save(tmp_path / "saved")
    for one in (tokenizer, load_tokenizer(tmp_path / "saved")):
        template = PromptTemplate.of_model(TINY["llama"], one, 2, CHAT)
        ids = template.prompt_ids(TEXTS[0], text, 1000)
        assert ids == stock_ids(directory, TEXTS[0], text) + thought(one)
        apart = template.instruction_ids(TEXTS[0]), template.input_ids(text)
        assert apart[0] + apart[1] == ids and apart[0][-2:] == [one.gist_id] * 2
        answered = ids + template.output_ids(TEXTS[2])
        assert answered == stock_ids(directory, TEXTS[0], text, TEXTS[2])[: len(answered)]
        (encoded,) = template.encode([{"instruction": TEXTS[0], "input": text, "output": TEXTS[2]}])
        assert template.prompt(encoded, 1000) + list(encoded.output) == answered


def test_an_instruction_after_another_goes_on_with_the_system_message(directory):
    template = PromptTemplate.of_model(TINY["llama"], load_tokenizer(directory), 2, CHAT)
    tokenizer, ids = template.tokenizer, template.instruction_ids(TEXTS[0], continues=True)
    assert ids == [*tokenizer.encode("\n" + TEXTS[0]), *[tokenizer.gist_id] * 2]


def test_long_prompts_stay_chats(directory):
    template = PromptTemplate.of_model(TINY["llama"], load_tokenizer(directory), 2, CHAT)
    whole = template.prompt_ids(TEXTS[0], "tea " * 100, 10_000)
    without = template.prompt_ids(TEXTS[0], "", 10_000)
    asking = template.input_ids("tea")[-1]
    for limit in range(len(without) + 2, len(whole), 7):
        cut = template.prompt_ids(TEXTS[0], "tea " * 100, limit)
        assert len(cut) <= limit and cut[-1] == asking
        assert cut.count(template.tokenizer.gist_id) == 2
        for _, number in template.chat.special_ids:  # a message is opened and closed, or not there
            assert cut.count(number) in (whole.count(number), without.count(number))


def test_a_template_with_the_date_of_today():
    made = train_bpe(TEXTS, 270).backend
    dated = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = from_tokenizers(made.tokenizer, made.special_tokens, dated)
    ids = PromptTemplate.of_model(TINY["llama"], tokenizer, 1, CHAT).instruction_ids("x")
    assert tokenizer.decode(ids) == "26 Jul 2024 x"


def test_special_tokens_in_texts_are_text(directory):
    tokenizer = load_tokenizer(directory)
    template = PromptTemplate.of_model(TINY["llama"], tokenizer, 1, CHAT)
    special = [text for text in tokenizer.backend.special_ids() if text.startswith("<|")]
    plain = template.prompt_ids("Say.", "x", 1000)
    for text in [*special, GIST]:
        for fields in ((f"Say {text}.", "x"), ("Say.", f"x {text} y")):
            ids = template.prompt_ids(*fields, 1000)
            number = tokenizer.backend.special_ids()[text]
            assert ids.count(number) == plain.count(number)


@pytest.mark.parametrize("directory", ["qwen3", "mistral"], indirect=True)
def test_compress_and_generate_follow_the_template(directory, tmp_path):
    tokenizer = load_tokenizer(directory)
    config = dataclasses.replace(TINY["llama"], vocab_size=tokenizer.vocab_size)
    params = registry.init(config, jax.random.key(0))
    settings = dict(config=config, tokenizer=tokenizer, num_gist_tokens=2)
    model = LanguageModel.from_params(params, **settings, template=CHAT)
    gists = model.compress([TEXTS[0]])
    assert gists.origin.template == model.template.name != CHAT
    from_cache = model.generate(gists, inputs=TEXTS[1:], max_new_tokens=5)
    prompts = [stock_ids(directory, TEXTS[0], text) + thought(tokenizer) for text in TEXTS[1:]]
    expected = model.generate_ids(prompts, None, 5)
    assert from_cache == [tokenizer.decode(row) for row in expected]
    paper = LanguageModel.from_params(params, **settings)
    with pytest.raises(UserError, match="the gist cache is of a chat-.* prompt"):
        paper.generate(gists, inputs=["x"])
    with pytest.raises(UserError, match="the gist cache is of a paper prompt"):
        model.generate(paper.compress([TEXTS[0]]), inputs=["x"])
    model.export(tmp_path / "out")
    import gist_jax

    again = gist_jax.load(tmp_path / "out")
    assert again.generate(gists, inputs=TEXTS[1:], max_new_tokens=5) == from_cache


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
)
IGNORED = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "the tokenizer has no chat template"),
        (NO_SYSTEM + "{% endfor %}", "the chat template fails: no system"),
        ("{% for m in messages %}", "the chat template fails"),
        (IGNORED, "does not write the system message once"),
        (
            "{% for m in messages %}{{ m.content }}<s>{% endfor %}",
            "ends an answer with <s>, which is not",
        ),
    ],
)
def test_templates_that_cannot_be_used(template, sentence):
    made = train_bpe(TEXTS, 270).backend
    tokenizer = from_tokenizers(made.tokenizer, made.special_tokens, template)
    with pytest.raises(UserError, match=sentence):
        chat = PromptTemplate.of_model(TINY["llama"], tokenizer, 1, CHAT)
        chat.instruction_ids("x")
    with pytest.raises(UserError, match="has no chat template"):
        PromptTemplate.of_model(TINY["t5"], tokenizer, 1, CHAT)
