"""The mask as a picture.

It is drawn by the rule that models are trained with, `gist.attention_mask`, so that it cannot say
anything else.

python -m gist_jax.mask_picture --output=mask.svg
"""

import html
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from gist_jax import cli
from gist_jax.data.tokenization import GIST
from gist_jax.errors import UserError
from gist_jax.gist import CONDITIONS, attention_mask, layout_of
from gist_jax.io import atomic_write

WORDS = ("Say", "the", "last", "word", GIST, "tea", "cup", "lamp", "→", "lamp")
CELL, GAP, TITLE, LETTER = 20, 26, 44, 7.4  # pixels
# They can be read on white and on black.
SEEN, SEEN_GIST, HIDDEN, TEXT = "#4c78c8", "#1f9a6c", "#8888882b", "#808080"
MEANINGS = {
    "gist": "of the instruction only <GIST>",
    "pos_control": "everything before",
    "neg_control": "nothing of the instruction",
}


def mask_svg(
    words: Sequence[str] = WORDS,
    conditions: Sequence[str] = CONDITIONS,
    *,
    bidirectional: bool = False,
) -> str:
    """An SVG document of which tokens each token sees, a panel for each condition.

    Lines are the tokens that see, columns those that are seen. Gist tokens that are seen are green.

    Args:
      words: a text for each of T tokens; "<GIST>" is a gist token.
      conditions: of `gist.CONDITIONS`.
      bidirectional: an encoder's mask, not a decoder's.

    Raises:
      UserError: if there are no words.
      ValueError: for an unknown condition.
    """
    if not words:
        raise UserError("there are no words to draw a mask of")
    tokens = jnp.array([[int(word == GIST) for word in words]])
    layout = layout_of(tokens, gist_token=1)
    side, left = CELL * len(words), LETTER * max(map(len, words)) + 10
    # What stands over a panel may be wider than it.
    pitch = max(side, LETTER * max(len(MEANINGS.get(c, "")) for c in conditions)) + GAP
    width, height = left + pitch * len(conditions), TITLE + side + left + 34
    drawn = [_text(left - 6, TITLE + CELL * (i + 0.68), word, "end") for i, word in enumerate(words)]
    for number, condition in enumerate(conditions):
        mask = np.asarray(attention_mask(layout, condition, bidirectional=bidirectional)[0, 0])
        start = left + pitch * number
        drawn.append(_text(start, 16, condition, size=15, weight="bold"))
        drawn.append(_text(start, 34, MEANINGS[condition]))
        drawn += _cells(mask, np.asarray(tokens[0] == 1), start)
        drawn += [_below(start + CELL * (i + 0.7), TITLE + side + 8, x) for i, x in enumerate(words)]
    legend = ((SEEN, "seen"), (SEEN_GIST, "seen, a gist token"), (HIDDEN, "hidden"))
    for number, (colour, meaning) in enumerate(legend):
        drawn.append(_square(left + 170 * number, height - 22, colour))
        drawn.append(_text(left + 170 * number + CELL + 4, height - 9, meaning))
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    font = 'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12"'
    title = "Which tokens see which: " + ", ".join(conditions)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">\n<title>{title}</title>'
    return "\n".join([head, *drawn, "</svg>\n"])


def _cells(mask: np.ndarray, is_gist: np.ndarray, start: float) -> list[str]:
    """A square for every query and key of `mask`, bool `[T, T]`."""
    colours = np.where(mask, np.where(is_gist, SEEN_GIST, SEEN), HIDDEN)
    return [
        _square(start + CELL * key, TITLE + CELL * query, str(colours[query, key]))
        for query, key in np.ndindex(mask.shape)
    ]


def _square(x: float, y: float, colour: str) -> str:
    side = CELL - 2
    return f'<rect x="{x:.0f}" y="{y:.0f}" width="{side}" height="{side}" rx="3" fill="{colour}"/>'


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: int = 12, weight: str = "normal"
) -> str:
    colour = SEEN_GIST if text == GIST else TEXT
    style = f'fill="{colour}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{html.escape(text)}</text>'


def _below(x: float, y: float, text: str) -> str:
    """A column's token, written upwards."""
    return f'<g transform="translate({x:.0f} {y:.0f}) rotate(-90)">{_text(0, 0, text, "end")}</g>'


def main() -> None:
    """Runs the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--output", required=True, type=cli.output_file, help="SVG file to write")
    options = arguments.parse_args()
    with cli.exit_on_user_error(), atomic_write(options.output) as tmp:
        tmp.write_text(mask_svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
