"""The documentation is right: its Python runs, and its commands have the flags and configs they name.

A fenced block of Python behind `<!-- run -->` is run, those of a page one after the other, with `lm` and
what its text takes as given. In any other fenced block the commands of gist_jax are looked at.
"""

import doctest
import importlib
import pathlib
import re
import shlex
import sys

import pytest
from flax.traverse_util import flatten_dict
from launch_scripts import script

import gist_jax
from gist_jax import cli
from gist_jax.training import config as training_config
from gist_jax.training import validation

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "engines" / "vllm" / "README.md"]
PAGES = [path for path in [*PAGES, *sorted((ROOT / "docs").glob("*.md"))] if path.exists()]
RUN = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.S)
FENCED = re.compile(r"^```(?:bash|sh)?\n(.*?)^```", re.S | re.M)
COMMAND = re.compile(r"(?:python|python3) (?:-m (gist_jax[\w.]*)|launch/(\w+)\.py)(.*)")
FIELDS = {
    name
    for family in ("llama", "t5")
    for name in flatten_dict(training_config.default(family).to_dict(), sep=".")
}


def commands_of(text: str) -> list[tuple[str, str]]:
    """The modules, or scripts of launch/, and the arguments of commands in fenced blocks."""
    found = []
    for block in FENCED.findall(text):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            for module, launched, rest in COMMAND.findall(line):
                # A remark stands behind several spaces; "--" is followed by another command.
                rest = re.split(r"\s{3,}(?!-)|\s#\s|\s--(?=\s)", rest)[0]
                found.append((module or f"launch/{launched}", rest))
    return found


COMMANDS = sorted({found for path in PAGES for found in commands_of(path.read_text())})
HELP: dict[tuple[str, ...], str] = {}


def help_of(name: str, subcommand: str, monkeypatch, capsys) -> str:
    """What a command prints for --help."""
    if (name, subcommand) not in HELP:
        if name.startswith("launch/"):
            module = script(name.removeprefix("launch/"))
        else:
            module = importlib.import_module(name)
            if hasattr(module, "__path__"):  # a package
                module = importlib.import_module(f"{name}.__main__")
        monkeypatch.setattr(sys, "argv", [name, *([subcommand] if subcommand else []), "--help"])
        with pytest.raises(SystemExit) as end:
            module.main()
        assert end.value.code == 0
        HELP[name, subcommand] = capsys.readouterr().out
    return HELP[name, subcommand]


@pytest.mark.parametrize(("name", "rest"), COMMANDS)
def test_a_command_has_the_flags_that_are_shown(name, rest, monkeypatch, capsys):
    first = rest.split()[0] if rest.split() else ""
    subcommand = first if name.endswith((".convert", ".library")) else ""
    printed = help_of(name, subcommand, monkeypatch, capsys)
    known = set(re.findall(r"--[a-zA-Z_][\w-]*", printed))
    for argument in shlex.split(rest.replace("[", " ").replace("]", " ")):
        flag, _, value = argument.partition("=")
        if flag.startswith("--config."):
            assert "--config" in known and flag.removeprefix("--config.") in FIELDS, argument
        elif flag.startswith("--"):
            assert flag in known, argument
        if flag == "--config" and value.islower():
            config = value.split(":")[0]
            assert config in cli.config_names() or config.endswith(".py"), argument


def test_commands_are_found():
    assert len(COMMANDS) > 40 and {name for name, _ in COMMANDS} >= {
        *("gist_jax.train", "gist_jax.convert", "launch/sweep", "gist_jax.data.describe"),
    }
    text = "```\npython -m gist_jax.train --config=x \\\n    --workdir=D    a remark\n```\n"
    assert commands_of(text) == [("gist_jax.train", " --config=x --workdir=D")]


def test_every_page_is_found_from_another():
    """Of links within the repository; those of docs/ mkdocs checks too, with their headings."""
    for path in PAGES:
        for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name} -> {link}"
    nav = (ROOT / "mkdocs.yml").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name in nav


@pytest.mark.parametrize(
    "page", [path for path in PAGES if RUN.search(path.read_text())], ids=lambda x: x.stem
)
@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_python_runs(page, lm, workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "gist").symlink_to(workdir)
    given = {"gist_jax": gist_jax, "lm": lm, "texts": ["tea cup lamp"]}
    for number, block in enumerate(RUN.findall(page.read_text())):
        exec(compile(block, f"{page.name}, block {number}", "exec"), given)
    if "get_config" in given:
        validation.validate(given["get_config"]())


def test_examples_in_docstrings():
    """Every module that has some, as Python's own prompt shows them."""
    found = 0
    for file in sorted((ROOT / "gist_jax").rglob("*.py")):
        if ">>>" in file.read_text(encoding="utf-8"):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            results = doctest.testmod(importlib.import_module(name))
            assert not results.failed
            found += results.attempted
    assert found
