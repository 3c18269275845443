"""Mistakes of the user, as against faults of the program."""


class UserError(ValueError):
    """A mistake of the user: its text says in one sentence what is wrong and, where it can, what to do.

    Commands print just that sentence.
    """


class Stopped(Exception):
    """A run was told to stop and has saved everything; started again it resumes."""


def shortened(message: object, limit: int = 200) -> str:
    """What helps of another library's message: on one line, at most `limit` characters.

    Libraries put what is wrong first, and details (whole trees, dumps of state) after it.
    """
    text = " ".join(str(message).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
