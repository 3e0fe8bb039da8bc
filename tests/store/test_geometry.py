"""Where patches lie, against rasters: pictures of many points, each asked where it is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from vitscope.store.geometry import (
    Rectangle,
    box_share,
    boxes_share,
    input_rectangles,
    source_rectangles,
)
from vitscope.store.manifest import TokenLayout

FINE = 8
"""Points to a pixel of the raster, each way: all lengths below are whole eighths of a pixel."""

EIGHTHS = st.integers(1, 96).map(lambda n: n / FINE)
CORNERS = st.integers(-160, 160).map(lambda n: n / FINE)
LAYOUTS = st.builds(
    TokenLayout,
    prefix=st.just(()),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    cell_height=EIGHTHS,
    cell_width=EIGHTHS,
    top=CORNERS,
    left=CORNERS,
)


@st.composite
def rectangles(draw: st.DrawFn) -> Rectangle:
    x0, y0 = draw(CORNERS), draw(CORNERS)
    return x0, y0, x0 + draw(EIGHTHS), y0 + draw(EIGHTHS)


@given(LAYOUTS, st.data())
def test_a_point_of_the_input_lies_in_the_patch_that_it_is_counted_into(
    tokens: TokenLayout, data: st.DataObject
) -> None:
    found = input_rectangles(tokens)
    assert found.shape == (tokens.height, tokens.width, 4)
    x = data.draw(st.integers(-80 * FINE, 80 * FINE)) / FINE + 1 / (2 * FINE)
    y = data.draw(st.integers(-80 * FINE, 80 * FINE)) / FINE + 1 / (2 * FINE)
    row = int(np.floor((y - tokens.top) / tokens.cell_height))
    column = int(np.floor((x - tokens.left) / tokens.cell_width))
    x0, y0, x1, y1 = np.moveaxis(found, -1, 0)
    hit = np.argwhere((x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)).tolist()
    inside = 0 <= row < tokens.height and 0 <= column < tokens.width
    assert hit == ([[row, column]] if inside else [])


def test_patches_of_an_even_grid() -> None:
    tokens = TokenLayout.even((), 2, 3, (20, 60))
    assert input_rectangles(tokens)[1].tolist() == [
        [0, 10, 20, 20],
        [20, 10, 40, 20],
        [40, 10, 60, 20],
    ]


def test_patches_through_resize_and_crop() -> None:
    # A picture of 200 x 100 pixels, shrunk to half and cropped to 40 x 60 around its middle; the
    # grid begins 4 pixels inside.
    tokens = TokenLayout((), 4, 7, 8.0, 8.0, 4.0, 2.0)
    view = (40.0, 10.0, 160.0, 90.0)
    found = source_rectangles(tokens, view, (40, 60))
    assert found[0, 0].tolist() == [44, 18, 60, 34]
    assert found[3, 6].tolist() == [140, 66, 156, 82]


@given(rectangles(), st.integers(1, 9), st.integers(1, 9))
def test_an_even_grid_fills_the_view(view: Rectangle, height: int, width: int) -> None:
    tokens = TokenLayout.even((), height, width, (36, 60))
    found = source_rectangles(tokens, view, (36, 60))
    np.testing.assert_allclose([*found[0, 0, :2], *found[-1, -1, 2:]], view, atol=1e-9)
    # Neighbours touch, and all are of one size.
    np.testing.assert_allclose(found[:, 1:, 0], found[:, :-1, 2], atol=1e-9)
    np.testing.assert_allclose(found[1:, :, 1], found[:-1, :, 3], atol=1e-9)
    np.testing.assert_allclose(np.ptp(found[..., 2] - found[..., 0]), 0, atol=1e-9)


@given(LAYOUTS, rectangles())
def test_shares_are_those_of_a_raster(tokens: TokenLayout, box: Rectangle) -> None:
    """The view is the input at its own size, so that every edge lies on the raster."""
    found = box_share(tokens, box, (0, 0, 48, 32), (32, 48))
    assert found.shape == (tokens.height, tokens.width)
    for y in range(tokens.height):
        for x in range(tokens.width):
            ys = points(tokens.top + y * tokens.cell_height, tokens.cell_height)
            xs = points(tokens.left + x * tokens.cell_width, tokens.cell_width)
            inside = [(box[1] < py < box[3]) and (box[0] < px < box[2]) for py in ys for px in xs]
            np.testing.assert_allclose(found[y, x], np.mean(inside), atol=1e-9)


def points(start: float, length: float) -> npt.NDArray[np.float64]:
    """Middles of all eighths of a pixel from `start` on."""
    return start + (np.arange(round(length * FINE)) + 0.5) / FINE


@given(LAYOUTS, rectangles(), rectangles())
def test_a_share_is_the_same_in_both_frames(
    tokens: TokenLayout, box: Rectangle, view: Rectangle
) -> None:
    """The box carried into the input covers as much of the patches there."""
    width, height = view[2] - view[0], view[3] - view[1]
    carried = (
        (box[0] - view[0]) / width * 48,
        (box[1] - view[1]) / height * 32,
        (box[2] - view[0]) / width * 48,
        (box[3] - view[1]) / height * 32,
    )
    there = box_share(tokens, carried, (0, 0, 48, 32), (32, 48))
    np.testing.assert_allclose(box_share(tokens, box, view, (32, 48)), there, atol=1e-6)


@given(LAYOUTS, rectangles())
def test_a_box_over_everything_covers_all_and_an_empty_one_nothing(
    tokens: TokenLayout, view: Rectangle
) -> None:
    everything = (-1e9, -1e9, 1e9, 1e9)
    assert (box_share(tokens, everything, view, (32, 48)) == 1).all()
    point = (view[0], view[1], view[0], view[1])
    assert (box_share(tokens, point, view, (32, 48)) == 0).all()


def test_cells_that_have_no_size_beside_their_place_are_covered_by_nothing() -> None:
    tokens = TokenLayout((), 2, 3, 1e-9, 1e-9, 1e9, 1e9)
    view = (0.0, 0.0, 48.0, 32.0)
    everything = (-1e12, -1e12, 1e12, 1e12)
    assert (box_share(tokens, everything, view, (32, 48)) == 0).all()
    assert (boxes_share(tokens, [everything], view, (32, 48)) == 0).all()


@given(LAYOUTS, st.lists(rectangles(), max_size=4), rectangles())
def test_boxes_cover_what_they_cover_together(
    tokens: TokenLayout, boxes: list[Rectangle], view: Rectangle
) -> None:
    """Against a raster of points: those in any of the boxes."""
    size = (32, 48)
    found = boxes_share(tokens, boxes, view, size)
    assert found.shape == (tokens.height, tokens.width)
    patches = source_rectangles(tokens, view, size)
    single = [box_share(tokens, box, view, size) for box in boxes]
    # Between the most that one of them covers and all that they cover one by one.
    assert (found >= np.max([np.zeros_like(found), *single], axis=0) - 1e-9).all()
    assert (found <= np.sum([np.zeros_like(found), *single], axis=0) + 1e-9).all()
    for y in range(tokens.height):
        for x in range(tokens.width):
            x0, y0, x1, y1 = patches[y, x]
            xs = x0 + (np.arange(64) + 0.5) / 64 * (x1 - x0)
            ys = y0 + (np.arange(64) + 0.5) / 64 * (y1 - y0)
            inside = np.zeros((64, 64), np.bool_)
            for left, upper, right, lower in boxes:
                inside |= np.outer((ys > upper) & (ys < lower), (xs > left) & (xs < right))
            # Each of up to 16 edges cuts a row or column of the raster at most.
            assert abs(inside.mean() - found[y, x]) <= 16 / 64
