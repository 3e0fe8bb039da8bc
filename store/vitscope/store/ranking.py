"""The order every answer obeys: higher score first, then lower row; NaN never ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float16]
Rows = npt.NDArray[np.int64]

_NEVER = _MINUS_ZERO = np.int16(-(1 << 15))
_INFINITY = np.int16(0x7C00)


def sortable(scores: Scores) -> npt.NDArray[np.int16]:
    """Map float16 to int16 of the same shape so that integer order is score order.

    The sign-magnitude bits of IEEE 754 binary16 become two's complement; -0 equals +0 and NaN
    lies below everything. Integer partition is several times faster than on float16.
    """
    # In integers throughout: NumPy computes with float16 one value at a time.
    bits = scores.view(np.int16)
    order = bits ^ ((bits >> 15) & np.int16(0x7FFF))
    order[bits == _MINUS_ZERO] = 0
    order[(bits & np.int16(0x7FFF)) > _INFINITY] = _NEVER
    return order


def top_rows(scores: Scores, k: int, *, lowest: bool = False) -> Rows:
    """Rows of the `k` best of `scores` (N,), best first; fewer where fewer are not NaN.

    With `lowest` the lowest ones, lowest first. Lower rows first among equal scores either way.
    """
    order = sortable(scores)
    there = order != _NEVER
    if lowest:
        # Turned around, without what never ranks.
        order = np.where(there, ~order, _NEVER)
    return largest(order, min(k, int(np.count_nonzero(there))))


def band_rows(scores: Scores, low: float, high: float) -> Rows:
    """Rows, ascending, whose score lies between two quantiles, both included.

    The quantiles at levels `low` and `high` are those of the `scores` (N,) that are not NaN, each
    the smallest that at least so large a share of them does not exceed ("inverted CDF").
    """
    order = sortable(scores)
    there = np.flatnonzero(order != _NEVER)
    if not len(there):
        return there
    values = order[there]
    first, last = (quantile_place(level, len(values)) for level in (low, high))
    bars = np.partition(values, [first, last])[[first, last]]
    inside: Rows = there[(values >= bars[0]) & (values <= bars[1])]
    return inside


def quantile_place(level: float, count: int) -> int:
    """Which of `count` sorted scores is the quantile at `level`.

    Hyndman and Fan, "Sample quantiles in statistical packages", 1996, definition 1.
    """
    return max(0, math.ceil(round(level * count, 9)) - 1)


def largest(values: npt.NDArray[Any], k: int) -> Rows:
    """Places of the `k` largest of `values` (N,), largest first, lower places first among equals.

    No value is NaN, and there are at least `k`.
    """
    if k == 0:
        return np.empty(0, np.int64)
    # The k-th best value, then everything above it, then the lowest places that equal it.
    bar = np.partition(values, values.size - k)[values.size - k]
    above = np.flatnonzero(values > bar)
    level = np.flatnonzero(values == bar)[: k - above.size]
    # Nothing above the bar is the least int16, whose negative there is none of.
    above = above[np.argsort(-values[above], kind="stable")]
    return np.concatenate([above, level])


def scores_of(order: npt.NDArray[np.int16]) -> Scores:
    """The float16 of which `sortable` made these int16, of the same shape."""
    return np.where(
        order == _NEVER, np.int16(0x7E00), order ^ ((order >> 15) & np.int16(0x7FFF))
    ).view(np.float16)
