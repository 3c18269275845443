"""Damaged files end in a sentence: a few cases of everything that `tests/helpers/fuzz.py` knows."""

import fuzz
import pytest

# Cases that once ended in a traceback.
FOUND = {
    "gist": [217929],
    "library": [19],
    "model.json": [6718],
    "metrics": [1, 4],
    "tokenizer": [94],
    "tokenizer_config": [7, 11, 83],
    "config.json": [20, 95, 99, 701],
}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_damaged_files_end_in_a_sentence(name, tmp_path):
    numbers = [*FOUND.get(name, []), *range(1000, 1060)]
    failed = [(number, repr(error)) for number, error in fuzz.failures(name, tmp_path / "x", numbers)]
    assert not failed
