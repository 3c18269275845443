"""From the records of a source to examples: which of their fields are instruction, input and output."""

from collections.abc import Callable, Mapping
from typing import Any

from gist_jax.errors import UserError

Record = Mapping[str, Any]
Example = dict[str, str]  # FIELDS, or DOCUMENT alone
FIELDS = ("instruction", "input", "output")
DOCUMENT = "text"  # the only field of an example that is a document

# Ready mappings: the field of a record that each of ours comes from. Where a record does not tell
# instruction and input apart, the whole prompt is the instruction, and the input is empty.
READY: dict[str, dict[str, str]] = {
    "alpaca": {"instruction": "instruction", "input": "input", "output": "output"},
    "dolly": {"instruction": "instruction", "input": "context", "output": "response"},
    "superni": {"instruction": "definition", "input": "inputs", "output": "targets"},
    "flan": {"instruction": "inputs", "output": "targets"},
    "p3": {"instruction": "inputs_pretokenized", "output": "targets_pretokenized"},
}
# Lists of messages, by the field that holds them, and the fields that say who wrote a message and what.
CHATS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_ROLES = {"human": "user", "gpt": "assistant"}  # of ShareGPT


def mapping(
    chosen: Mapping[str, str], record: Record, labelled: bool = True
) -> Callable[[Record], dict[str, Any]]:
    """What makes an example of a record, unchecked.

    Args:
      chosen: the names of fields that are instruction, input and output, or one of READY and CHATS under
        "fields". Empty: the first of these that suits the record.
      labelled: whether records must have an output.

    Raises:
      UserError: if a name is not known, or no field of the record.
    """
    ready = {name: _picker(fields) for name, fields in READY.items()}
    ready |= {name: _chat(name) for name in CHATS} | {"sharegpt": _chat("conversations")}
    if name := chosen.get("fields"):
        if name not in ready:
            raise UserError(f"fields={name} is not known: choose from {', '.join(ready)}")
        if len(chosen) > 1:
            raise UserError(f"give either fields={name} or the names of fields")
        return ready[name]
    if chosen:
        if missing := sorted(set(chosen.values()) - record.keys()):
            names = ", ".join(map(str, record))
            raise UserError(f"the first record has no field {missing[0]}, but {names}")
        return _picker({**READY["alpaca"], **chosen})
    for name in CHATS:
        if name in record:
            return ready[name]
    for name, fields in READY.items():
        needed = {fields["instruction"], fields["output"]} if labelled else {fields["instruction"]}
        if needed <= record.keys():
            return ready[name]
    return ready["alpaca"]  # which says what is missing


def _picker(fields: Mapping[str, str]) -> Callable[[Record], dict[str, Any]]:
    return lambda record: {name: record.get(field) for name, field in fields.items()}


def _chat(field: str) -> Callable[[Record], dict[str, Any]]:
    """The first exchange of a chat; the system message is the instruction.

    {messages: [{role: system, content: "Add tea."}, {role: user, content: "cup"},
                {role: assistant, content: "cup tea"}]}
        -> {instruction: "Add tea.", input: "cup", output: "cup tea"}

    Without a system message what the user says is the instruction.
    """
    who, what = CHATS[field]

    def example(record: Record) -> dict[str, Any]:
        said: dict[str, Any] = {}
        messages = record.get(field)
        for message in messages if isinstance(messages, list) else []:
            if isinstance(message, Mapping):
                role = message.get(who)
                role = _ROLES.get(role, role) if isinstance(role, str) else ""
                if role != "assistant" or "user" in said:  # with which some chats begin
                    said.setdefault(role, message.get(what))
            if "assistant" in said:
                break
        user = said.get("user")
        if said.get("system"):
            return {"instruction": said["system"], "input": user, "output": said.get("assistant")}
        return {"instruction": user, "input": "", "output": said.get("assistant")}

    return example


def is_document(record: Record) -> bool:
    """Whether a record is a text alone: it has the field text, and no ready mapping suits it."""
    known = [{fields["instruction"]} for fields in READY.values()] + [{name} for name in CHATS]
    return DOCUMENT in record and not any(names <= record.keys() for names in known)


def checked_text(record: Record, field: str, number: int, where: object) -> str:
    """The text of a document.

    Raises:
      UserError: naming the record, if it has none.
    """
    text = record.get(field)
    if isinstance(text, bytes):  # as TFDS gives them
        text = text.decode(errors="surrogateescape")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"record {number} of {where} must have a {field} that is a non-empty text")
    if not is_unicode(text):
        raise UserError(f"record {number} of {where} is not valid Unicode")
    return text


def is_unicode(text: str) -> bool:
    """Whether a text can be written: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked(example: Mapping[str, Any], number: int, where: object) -> Example:
    """The example as texts; a missing input, or null, is an empty text.

    Raises:
      UserError: naming the record, if it has no instruction or no output, or holds no texts.
    """
    texts: dict[str, Any] = {}
    for name in FIELDS:
        value = example.get(name)
        if isinstance(value, bytes):  # as TFDS gives them
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise UserError(f"record {number} of {where} has an {name} that is not UTF-8") from None
        texts[name] = value
    problem = None
    if not isinstance(texts["instruction"], str) or not texts["instruction"].strip():
        problem = "must have an instruction that is a non-empty text"
    elif not isinstance(texts["output"], str):
        problem = "must have an output that is a text"
    elif not isinstance(texts["input"] or "", str):
        problem = "has an input that is no text"
    elif not all(is_unicode(text or "") for text in texts.values()):
        problem = "is not valid Unicode"
    if problem:
        raise UserError(f"record {number} of {where} {problem}")
    return {**texts, "input": texts["input"] or ""}
