"""Mistakes of the user, as against faults of the program."""


class UserError(ValueError):
    """Says in one sentence what is wrong and, where it can, what to do. The doors print just that."""


class Stopped(Exception):
    """A run was told to stop and has saved all; started again it goes on."""
