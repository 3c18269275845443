"""The picture of the mask is drawn by the mask."""

import pathlib
import re
from xml.etree import ElementTree

import pytest
from commands import command

from gist_jax import mask_picture
from gist_jax.data.tokenization import GIST
from gist_jax.errors import UserError
from gist_jax.mask_picture import HIDDEN, SEEN, SEEN_GIST, mask_svg

PICTURE = pathlib.Path(__file__).parent.parent / "docs" / "images" / "mask.svg"


def lines_of(svg: str, side: int) -> list[str]:
    """A panel's lines: `x` where a token is seen, `g` where it is a seen gist token."""
    letters = {SEEN: "x", SEEN_GIST: "g", HIDDEN: "."}
    text = "".join(letters[colour] for colour in re.findall(r'<rect .* fill="(.*)"/>', svg))
    return [text[i : i + side] for i in range(0, side * side, side)]


def test_squares():
    words = ["a", "<b>", GIST, "c"]
    svg = mask_svg(words, ["gist"])
    assert lines_of(svg, 4) == ["x...", "xx..", "xxg.", "..gx"]
    assert lines_of(mask_svg(words, ["neg_control"]), 4) == ["x...", "xx..", "xxg.", "...x"]
    both = mask_svg(words, ["gist"], bidirectional=True)
    assert lines_of(both, 4) == ["xxg.", "xxg.", "xxg.", "..gx"]
    texts = [x.text for x in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("<b>") == 2 and "gist" in texts


def test_the_picture_of_the_documentation(tmp_path, monkeypatch, capsys):
    """It is what the command draws: python -m gist_jax.mask_picture --output=docs/images/mask.svg."""
    command(mask_picture, monkeypatch, capsys, f"--output={tmp_path / 'mask.svg'}")
    assert (tmp_path / "mask.svg").read_bytes() == PICTURE.read_bytes()


def test_mistakes():
    with pytest.raises(UserError, match="no words"):
        mask_svg([])
    with pytest.raises(ValueError, match="unknown condition"):
        mask_svg(conditions=["gits"])
