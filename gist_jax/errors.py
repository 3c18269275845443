"""Mistakes of the user, as against faults of the program."""

LONGEST = 800  # characters of a sentence


class UserError(ValueError):
    """A mistake of the user: its text says in one sentence what is wrong and, where it can, what to do.

    Commands print just that sentence. A value out of a file that it quotes may be of any length: of a
    text that is too long the middle is left out.
    """

    def __init__(self, text: object):
        sentence = str(text)
        if len(sentence) > LONGEST:
            sentence = f"{sentence[: LONGEST // 2]} … {sentence[-LONGEST // 2 :]}"
        super().__init__(sentence)


class Stopped(Exception):
    """A run was told to stop and has saved everything; started again it resumes."""


def shortened(message: object, limit: int = 200) -> str:
    """What helps of another library's message: on one line, at most `limit` characters.

    Libraries put what is wrong first, and details (whole trees, dumps of state) after it.
    """
    text = " ".join(str(message).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
