"""Where patches lie: in the model's input, in the source picture, and under a box.

Two frames, both in pixels with the origin at the upper left corner, x to the right and y down:
that of the model's input, and that of the source picture. A row's view ties them together: it is
the rectangle of the source picture that the whole input shows.

Axes: H patches from top to bottom, W patches from left to right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitscope.store.manifest import TokenLayout

Rectangle = tuple[float, float, float, float]
"""x0, y0, x1, y1 of the left, upper, right and lower edge."""
Doubles = npt.NDArray[np.float64]

_LEAST = 1e-9
"""Patches; less of them is what rounding leaves of nothing."""


def input_rectangles(tokens: TokenLayout) -> Doubles:
    """Rectangle of every patch in pixels of the model's input: (H, W, 4) as x0, y0, x1, y1."""
    return _rectangles(*_input_edges(tokens))


def source_rectangles(tokens: TokenLayout, view: Rectangle, input_size: tuple[int, int]) -> Doubles:
    """Rectangle of every patch in pixels of the source picture: (H, W, 4) as x0, y0, x1, y1.

    `input_size` is height and width of the model's input in pixels. Where the view or the grid
    sticks out, so do rectangles.
    """
    return _rectangles(*_source_edges(tokens, view, input_size))


def box_share(
    tokens: TokenLayout, box: Rectangle, view: Rectangle, input_size: tuple[int, int]
) -> Doubles:
    """Share of every patch's area that a box in pixels of the source picture covers: (H, W)."""
    xs, ys = _source_edges(tokens, view, input_size)
    return np.outer(_covered(ys, box[1], box[3]), _covered(xs, box[0], box[2]))


def tells_apart(shares: Doubles) -> bool:
    """Whether some of the patches' area lies inside and some outside, by their shares (…) of it."""
    return bool(_LEAST < shares.sum() < shares.size - _LEAST)


def boxes_share(
    tokens: TokenLayout,
    boxes: Sequence[Rectangle],
    view: Rectangle,
    input_size: tuple[int, int],
) -> Doubles:
    """Share of every patch's area that boxes cover together, where they overlap once: (H, W)."""
    xs, ys = _source_edges(tokens, view, input_size)
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    # Between two neighbouring edges, of patches or boxes, all is covered or nothing.
    columns, rows = (
        np.unique(np.concatenate([edges, sides.ravel().clip(edges[0], edges[-1])]))
        for edges, sides in ((xs, corners[:, 0::2]), (ys, corners[:, 1::2]))
    )
    x, y = (columns[1:] + columns[:-1]) / 2, (rows[1:] + rows[:-1]) / 2
    covered = np.zeros((len(y), len(x)), np.bool_)
    for x0, y0, x1, y1 in corners:
        covered |= np.outer((y > y0) & (y < y1), (x > x0) & (x < x1))
    area = covered * np.outer(np.diff(rows), np.diff(columns))
    shares = np.zeros((len(ys) - 1, len(xs) - 1))
    np.add.at(shares, np.ix_(np.searchsorted(ys, y) - 1, np.searchsorted(xs, x) - 1), area)
    return _share(shares, np.outer(np.diff(ys), np.diff(xs)))


def _input_edges(tokens: TokenLayout) -> tuple[Doubles, Doubles]:
    """Edges between the columns (W + 1,) and between the rows (H + 1,) of patches."""
    xs: Doubles = tokens.left + tokens.cell_width * np.arange(tokens.width + 1.0)
    ys: Doubles = tokens.top + tokens.cell_height * np.arange(tokens.height + 1.0)
    return xs, ys


def _source_edges(
    tokens: TokenLayout, view: Rectangle, input_size: tuple[int, int]
) -> tuple[Doubles, Doubles]:
    xs, ys = _input_edges(tokens)
    x0, y0, x1, y1 = view
    height, width = input_size
    return x0 + xs * ((x1 - x0) / width), y0 + ys * ((y1 - y0) / height)


def _rectangles(xs: Doubles, ys: Doubles) -> Doubles:
    x0, y0 = np.meshgrid(xs[:-1], ys[:-1])
    x1, y1 = np.meshgrid(xs[1:], ys[1:])
    return np.stack([x0, y0, x1, y1], axis=-1)


def _covered(edges: Doubles, start: float, stop: float) -> Doubles:
    """Share of every interval between edges (n + 1,) that lies in [start, stop]: (n,)."""
    inside = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    return _share(inside.clip(0), np.diff(edges))


def _share(parts: Doubles, whole: Doubles) -> Doubles:
    # Cells of a tiny size have none beside a place that is far away.
    return np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 0)
