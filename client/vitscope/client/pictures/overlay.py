"""A patch map laid over its picture.

The picture becomes a dimmed grey, so that every colour is heat and means the same on all pictures;
the hotter a patch, the more of the heat colour covers it.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vitscope.client.entries import PatchGrid

# Even steps of lightness from a dark violet to a pale yellow, as inferno takes them.
_HEAT_AT = np.linspace(0.0, 1.0, 6)
_HEAT = np.array(
    [(60, 15, 100), (125, 30, 108), (190, 55, 84), (234, 100, 42), (250, 160, 24), (253, 231, 110)],
    np.float32,
)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_COLD_LIGHT = 0.55  # share of its light that the picture keeps where the map is cold
_HOT_COVER = 0.85  # share of the heat colour in the hottest patch
_COVER_POWER = 0.9  # below 1, middling activations show more


def heat(share: ArrayLike) -> NDArray[np.float32]:
    """Heat colours, (..., 3) in [0, 255], for shares of the hottest value, (...) in [0, 1]."""
    share = np.asarray(share, np.float32)
    bands = [np.interp(share, _HEAT_AT, _HEAT[:, band]) for band in range(3)]
    return np.stack(bands, axis=-1).astype(np.float32)


def overlay(
    picture: NDArray[np.uint8],
    patch_map: ArrayLike,
    *,
    top: float,
    grid: PatchGrid | None = None,
) -> NDArray[np.uint8]:
    """`picture` with `patch_map` over it as heat.

    picture: HWC uint8 RGB, values in [0, 255].
    patch_map: (h, w) activations; 0 and less, and NaN, are cold.
    top: the activation that counts as hottest.
    grid: where the patches lie in the model's input, of which the picture shows the whole; what
        lies outside of them is cold. Without it they cover the picture evenly.
    Returns HWC uint8 RGB of the picture's size.
    """
    patches = _shares(np.asarray(patch_map, np.float32), top)
    share = _spread(patches, picture.shape[0], picture.shape[1], grid)[..., None]
    cold = _COLD_LIGHT * (picture.astype(np.float32) @ _LUMA)[..., None]  # [H, W, 1]
    cover = _HOT_COVER * share**_COVER_POWER  # [H, W, 1]
    mixed = cold + cover * (heat(share[..., 0]) - cold)  # [H, W, 3]
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def mask(
    patch_map: ArrayLike,
    height: int,
    width: int,
    *,
    low: float,
    high: float,
    grid: PatchGrid | None = None,
) -> NDArray[np.uint8]:
    """A patch map in grey, over a picture of (height, width) pixels: HW uint8.

    patch_map: (h, w) activations; `low` becomes 0, `high` 255, evenly between. Between the
        middles of patches it is bilinear, as in `overlay`.
    grid: as in `overlay`; 0 outside of the patches.
    NaN is 0, and so is all of a map where `high` is not above `low`.
    """
    values = np.asarray(patch_map, np.float32)
    span = np.nan_to_num(values - np.float32(low), nan=0.0, posinf=high - low, neginf=0.0)
    share = _spread(_shares(span, high - low), height, width, grid)
    return np.rint(share * 255).astype(np.uint8)


def _shares(patch_map: NDArray[np.float32], top: float) -> NDArray[np.float32]:
    """Activations as shares of `top` in [0, 1]."""
    if not top > 0:
        return np.zeros_like(patch_map)
    share: NDArray[np.float32] = np.nan_to_num(patch_map, nan=0.0, posinf=top) / np.float32(top)
    return np.clip(share, 0.0, 1.0)


def _spread(
    share: NDArray[np.float32], height: int, width: int, grid: PatchGrid | None
) -> NDArray[np.float32]:
    """(h, w) patches resized bilinearly to (height, width) pixels, each over its own."""
    h, w = share.shape
    # A patch is a unit long where the grid is as large as the picture.
    grid = grid or PatchGrid(h, w, 1.0, 1.0, 0.0, 0.0)
    top, bottom = _extent(grid.input_height, grid.cell_height, grid.top)
    left, right = _extent(grid.input_width, grid.cell_width, grid.left)
    # The outermost patches go on to the edges of the picture, and are cut off again below.
    above, below = math.ceil(max(0.0, -top)), math.ceil(max(0.0, bottom - h))
    before, behind = math.ceil(max(0.0, -left)), math.ceil(max(0.0, right - w))
    wide = np.pad(share, ((above, below), (before, behind)), mode="edge")
    box = left + before, top + above, right + before, bottom + above
    resized = Image.fromarray(wide).resize((width, height), Image.Resampling.BILINEAR, box)
    inside = np.outer(_inside(height, top, bottom, h), _inside(width, left, right, w))
    return np.where(inside, np.asarray(resized, np.float32), np.float32(0))


def _extent(side: int, cell: float, start: float) -> tuple[float, float]:
    """Where the input begins and ends along a line of patches, counted in patches from the first.

    To a millionth: an even grid begins and ends with the input, whatever 224 / (224 / 14) is.
    """
    return round(-start / cell, 6), round((side - start) / cell, 6)


def _inside(pixels: int, start: float, stop: float, patches: int) -> NDArray[np.bool_]:
    """Whether the middle of each pixel lies in any of the patches: (pixels,)."""
    at = start + (np.arange(pixels) + 0.5) * ((stop - start) / pixels)
    inside: NDArray[np.bool_] = (at >= 0) & (at <= patches)
    return inside
