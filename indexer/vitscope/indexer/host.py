"""The reduction of a layer on the processor, compiled, so that every activation is read once.

Plain PyTorch reads activations once for every pooling and again for maps, and starts a dozen
operations a pooling (`vitscope.indexer.reduce` does so on other devices). Here the patches of an
image stay in the processor's cache, some channels at a time, while they are pooled, rounded, ranked
and, where the image enters a channel's best, copied as its map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from vitscope.indexer.pooling import HALF_MAX
from vitscope.indexer.topk import LAST_ROW, NONE, ROW_BITS

MEAN, MAX = -1, -2
"""Sources of a score that are no single token."""

_BLOCK = 256
"""Channels pooled together: 200 KB of a 14 x 14 grid, which a core's own cache holds."""
_NAN = 0x7E00
"""Bits of a float16 NaN."""


def _reduce_channels(
    values: npt.NDArray[np.float32],
    first: int,
    sources: npt.NDArray[np.int64],
    start: int,
    stop: int,
    row: int,
    valid: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.int16],
    offset: int,
    keys: npt.NDArray[np.int64],
    bars: npt.NDArray[np.int64],
    maps: npt.NDArray[np.int16],
) -> int:
    """Take in channels `start` to `stop` of activations (B, T, C) of images `row` and following.

    Patches begin at token `first`; `sources` (P,) are `MEAN`, `MAX` or a token, for each pooling.
    Writes scores (P, C, U) from `offset` on, and where an image enters the best of a channel, one
    of its `keys` (P, C, K), the least of them in `bars` (P, C), and its map in `maps` (P, C, K,
    H * W). Float16 is handled as its bits. Gives the number of scores beyond its range.
    """
    batch, tokens, _ = values.shape
    total = np.empty(_BLOCK, np.float64)
    highest = np.empty(_BLOCK, np.float32)
    wide = np.empty(_BLOCK, np.float64)
    narrow = np.empty((len(sources), _BLOCK), np.int16)
    rounded = np.empty((len(sources), _BLOCK, batch), np.int16)
    beyond = 0
    for low in range(start, stop, _BLOCK):
        high = min(low + _BLOCK, stop)
        width = high - low
        for image in range(batch):
            if not valid[image]:
                rounded[:, :, image] = _NAN
                continue
            patches = values[image, first:]
            _pool(patches, low, width, total, highest)
            for number, source in enumerate(sources):
                if source == MEAN:
                    wide[:width] = total[:width] / (tokens - first)
                elif source == MAX:
                    wide[:width] = highest[:width]
                else:
                    wide[:width] = values[image, source, low:high]
                for c in range(width):
                    beyond += abs(wide[c]) > HALF_MAX
                    narrow[number, c] = _score(wide[c])
            rounded[:, :width, image] = narrow[:, :width]
            _rank(narrow[:, :width], row + image, patches, low, keys, bars, maps)
        scores[:, low:high, offset : offset + batch] = rounded[:, :width]
    return beyond


@njit(nogil=True, error_model="numpy")
def _pool(
    patches: npt.NDArray[np.float32],
    low: int,
    width: int,
    total: npt.NDArray[np.float64],
    highest: npt.NDArray[np.float32],
) -> None:
    """Sums and maxima of `width` channels of patches (N, C); NaN where there is one."""
    cells = len(patches)
    total[:width] = 0.0
    highest[:width] = -np.inf
    whole = cells - cells % 4
    # Four at a time: the running values are read and written a quarter as often. Rows are cut out
    # first, so that the compiler sees them without gaps.
    for cell in range(0, whole, 4):
        row0, row1 = patches[cell, low : low + width], patches[cell + 1, low : low + width]
        row2, row3 = patches[cell + 2, low : low + width], patches[cell + 3, low : low + width]
        for c in range(width):
            v0, v1, v2, v3 = row0[c], row1[c], row2[c], row3[c]
            # One after the other, as NumPy adds: where large values cancel, order shows.
            total[c] = total[c] + np.float64(v0) + np.float64(v1) + np.float64(v2) + np.float64(v3)
            left, right = v0 if v0 > v1 else v1, v2 if v2 > v3 else v3
            four = left if left > right else right
            highest[c] = four if four > highest[c] else highest[c]
    for cell in range(whole, cells):
        row0 = patches[cell, low : low + width]
        for c in range(width):
            total[c] += np.float64(row0[c])
            highest[c] = row0[c] if row0[c] > highest[c] else highest[c]
    for c in range(width):
        # Comparisons lose NaN; infinities of both signs make one out of none.
        if np.isnan(total[c]) and np.isnan(patches[:, low + c]).any():
            highest[c] = np.nan


@njit(nogil=True, error_model="numpy")
def _rank(
    scores: npt.NDArray[np.int16],
    row: int,
    patches: npt.NDArray[np.float32],
    low: int,
    keys: npt.NDArray[np.int64],
    bars: npt.NDArray[np.int64],
    maps: npt.NDArray[np.int16],
) -> None:
    """Let an image enter where its scores (P, W) beat the bars (P, C), with its map.

    The W channels are those from `low` on, of patches (N, C), `keys` (P, C, K) and `maps` (P, C, K,
    N). These come whole: the compiler does not see that parts of them are without gaps.
    """
    cells = len(patches)
    column = np.empty(cells, np.float32)
    patch_map = np.empty(cells, np.int16)
    for place in range(scores.shape[1]):
        c = low + place
        converted = False
        for number in range(len(bars)):
            key = _key(scores[number, place], row)
            if key <= bars[number, c]:
                continue
            if not converted:
                # Gathered before it is converted, which goes eight at a time.
                column[:] = patches[:, c]
                for cell in range(cells):
                    patch_map[cell] = _half(column[cell])
                converted = True
            slot = _enter(keys[number, c], bars[number, c], key)
            bars[number, c] = keys[number, c].min()
            maps[number, c, slot] = patch_map


@njit(nogil=True, error_model="numpy")
def _enter(keys: npt.NDArray[np.int64], least: np.int64, key: np.int64) -> int:
    """Put a key in the place of the least of a channel's keys (K,); gives the place."""
    slot = 0
    while keys[slot] != least:
        slot += 1
    keys[slot] = key
    return slot


@njit(nogil=True, error_model="numpy")
def _key(score: np.int16, row: int) -> np.int64:
    """As `vitscope.indexer.topk.ranking_keys` makes them, of the bits of a score."""
    bits = np.int64(score)
    order = (bits ^ ((bits >> 15) & 0x7FFF)) + (1 << 15)
    return np.int64(NONE) if bits == _NAN else (order << ROW_BITS) | (LAST_ROW - row)


@njit(nogil=True, error_model="numpy")
def _score(wide: np.float64) -> np.int32:
    """As `vitscope.indexer.pooling.round_to_half`, the bits of it."""
    inside = min(max(wide, -HALF_MAX), HALF_MAX)
    near = np.float32(inside)
    back = np.float64(near)
    # Rounding to odd on the way makes two roundings one.
    odd = near.view(np.int32) - np.int32(abs(back) > abs(inside)) | np.int32(back != inside)
    bits = _half_bits(np.int32(odd))
    return np.int32(_NAN) if np.isnan(wide) else np.int32(0) if bits & 0x7FFF == 0 else bits


@njit(nogil=True, error_model="numpy")
def _half(value: Any) -> np.int32:
    """As `vitscope.indexer.pooling.to_half`, the bits of it."""
    inside = np.float32(min(max(value, -HALF_MAX), HALF_MAX))
    return np.int32(_NAN) if np.isnan(value) else _half_bits(inside.view(np.int32))


@njit(nogil=True, error_model="numpy")
def _half_bits(bits: np.int32) -> np.int32:
    """Bits of the float16 nearest to a float32 in its range, ties to even."""
    sign = (bits >> 16) & 0x8000
    size = np.int32(bits & 0x7FFFFFFF)
    # Below 2 ** -14, half a unit added lets the addition itself round to multiples of 2 ** -24.
    shifted = np.float32(size.view(np.float32) + np.float32(0.5))
    small = shifted.view(np.int32) - 0x3F000000
    normal = (size + 0xFFF + ((size >> 13) & 1) - 0x38000000) >> 13
    return np.int32(sign | (small if size < 0x38800000 else normal))


_plain = njit(nogil=True, error_model="numpy")(_reduce_channels)
try:
    _kept = njit(nogil=True, error_model="numpy", cache=True)(_reduce_channels)
except RuntimeError:
    # There is no folder to keep compiled code in.
    _kept = _plain


def reduce_channels(*given: Any) -> int:
    """`_reduce_channels`, compiled by the first process that calls it and kept for the others."""
    try:
        return _kept(*given)
    except OSError:
        # The folder of compiled code is full, or not to be read or written: nothing has run yet.
        return _plain(*given)
