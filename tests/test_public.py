"""What the package promises in Python: names, annotations, docstrings, and taking a single text."""

import inspect
import subprocess
import sys

import pytest

import gist_jax

NAMES = [name for name in gist_jax.__all__ if name != "__version__"]


def functions_of(name):
    """Public functions and methods of a public name, each with its own name."""
    public = getattr(gist_jax, name)
    if inspect.isfunction(public):
        yield name, public
        return
    for method, _ in inspect.getmembers(public):
        found = inspect.getattr_static(public, method)
        found = getattr(found, "fget", None) or getattr(found, "func", None) or found
        found = getattr(found, "__func__", found)  # of a classmethod
        ours = str(getattr(found, "__module__", None)).startswith("gist_jax")
        if inspect.isfunction(found) and ours and not method.startswith("_"):
            yield f"{name}.{method}", found


FUNCTIONS = dict(pair for name in NAMES for pair in functions_of(name))


def test_names():
    """All of them are there, and nothing of JAX is loaded before one is asked for."""
    assert set(gist_jax.__all__) <= set(dir(gist_jax))
    for name in NAMES:
        assert getattr(gist_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(gist_jax, "nothing")  # noqa: B009
    early = "import gist_jax, sys; print(gist_jax.__version__, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, check=True)
    assert done.stdout == f"{gist_jax.__version__} False\n"
    assert issubclass(gist_jax.UserError, ValueError)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_says_what_it_is(name):
    own = inspect.getdoc(getattr(gist_jax, name))
    assert own and not own.startswith(f"{name}("), "made by dataclasses or by NamedTuple"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_and_gives(name):
    function = FUNCTIONS[name]
    signature = inspect.signature(function)
    doc = inspect.getdoc(function)
    assert doc and doc.split("\n")[0].endswith("."), "a sentence"
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in list(signature.parameters.values()):
        if parameter.name not in ("self", "cls"):
            assert parameter.annotation is not inspect.Parameter.empty, parameter.name


def test_the_functions_are_found():
    assert {"load", "LanguageModel.compress", "LanguageModel.origin"} <= FUNCTIONS.keys()
    assert {"GistCache.load", "GistCache.nbytes"} <= FUNCTIONS.keys()
    assert {"GistLibrary.add", "Prefix.save_mlx", "Fidelity.kl"} <= FUNCTIONS.keys()


@pytest.mark.parametrize("model_family", ["llama"], indirect=True)
def test_a_single_text(lm):
    """It is one row, and a text gives a text."""
    text, given = "Say the last word two times.", "red hammer tiger"
    gists = lm.compress(text)
    assert len(gists) == 1 and gists.instructions == (text,)
    written = lm.generate(gists, inputs=given, max_new_tokens=8)
    assert [written] == lm.generate(lm.compress([text]), inputs=[given], max_new_tokens=8)
    assert lm.generate(instructions=text, inputs=given, max_new_tokens=8) == written
