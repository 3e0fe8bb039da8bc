"""Text that came over the wire, made fit for a terminal or a picture, and columns of it."""

import unicodedata
from collections.abc import Callable, Sequence

_BRIEF = 80
"""Characters of a text where it is one of many."""


def printable(text: str) -> str:
    """`text` with nothing in it that could steer a terminal or break a line."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def drawable(text: str) -> str:
    """`text` in the characters of Pillow's own font: ASCII, the ellipsis and the middle dot."""
    return "".join(map(_drawable, text))


def _drawable(char: str) -> str:
    if char in "…·" or " " <= char <= "~":
        return char
    plain = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    return plain if plain.isprintable() and plain else "?"


def shortened(text: str, fits: Callable[[str], bool]) -> str:
    """`text`, or as much of its beginning and end as still `fits`, an ellipsis between."""
    if fits(text):
        return text
    low, high = 0, len(text)
    while low < high:  # the most characters that fit
        middle = (low + high + 1) // 2
        if fits(_elided(text, middle)):
            low = middle
        else:
            high = middle - 1
    return _elided(text, low)


def brief(text: str) -> str:
    """`text`, or the beginning and end of a long one, to be looked at among others."""
    return shortened(text, lambda some: len(some) <= _BRIEF)


def _elided(text: str, keep: int) -> str:
    head = (keep + 1) // 2
    return text[:head] + "…" + text[len(text) - (keep - head) :]


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns under their headings; numbers to the right, text to the left."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(headings))]
    widths = [max(len(row[i]) for row in [list(headings), *cells]) for i in range(len(headings))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in [headings, *cells]
    ]
    return "\n".join(lines)
