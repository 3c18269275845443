"""Runs commands in the process of the tests."""

import sys

import pytest

INSTRUCTIONS = ["Say the last word two times.", "Name the animal in the input, and nothing else."]
INPUTS = ["red hammer tiger", "cow cake"]


def command(module, monkeypatch, capsys, *arguments: str) -> str:
    """Runs a command's main in this process; what it printed."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()
    return capsys.readouterr().out


def mistake(module, monkeypatch, capsys, *arguments: str) -> str:
    """Runs a command that must fail; its one sentence."""
    with pytest.raises(SystemExit) as error:
        command(module, monkeypatch, capsys, *arguments)
    text = error.value.code if isinstance(error.value.code, str) else capsys.readouterr().err
    assert error.value.code not in (0, None)
    assert "Traceback" not in text
    return text
