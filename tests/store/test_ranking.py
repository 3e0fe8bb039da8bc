"""The order of answers, against sorting in plain Python."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscope.store.ranking import sortable, top_rows

# NumPy remarks on signalling NaNs, which no arithmetic makes.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")

ANY_HALF = st.integers(0, 0xFFFF)
"""Bit patterns: every NaN, both zeros, both infinities, subnormals."""
FEW = st.sampled_from([0x0000, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x3C00, 0xBC00, 0x0001])
BITS = st.lists(ANY_HALF, max_size=80) | st.lists(FEW, max_size=80)


def halves(bits: list[int]) -> npt.NDArray[np.float16]:
    return np.array(bits, np.uint16).view(np.float16)


def expected(scores: npt.NDArray[np.float16], k: int) -> list[int]:
    rows = [row for row, score in enumerate(scores.tolist()) if not math.isnan(score)]
    rows.sort(key=lambda row: (-float(scores[row]), row))
    return rows[:k]


@given(BITS, st.integers(0, 100))
def test_top_rows_are_those_of_a_sorted_list(bits: list[int], k: int) -> None:
    scores = halves(bits)
    before = scores.tobytes()
    found = top_rows(scores, k)
    assert found.dtype == np.int64
    assert found.tolist() == expected(scores, k)
    assert scores.tobytes() == before


@given(st.lists(FEW, min_size=4, max_size=40), st.integers(1, 20))
def test_top_rows_of_a_column_that_is_not_contiguous(bits: list[int], k: int) -> None:
    table = np.stack([halves(bits), halves(bits[::-1])], axis=1)
    assert top_rows(table[:, 1], k).tolist() == expected(halves(bits[::-1]), k)


@given(ANY_HALF, ANY_HALF)
def test_sortable_keeps_the_order_of_any_two_scores(left: int, right: int) -> None:
    scores = halves([left, right])
    a, b = sortable(scores).tolist()
    x, y = scores.tolist()
    if math.isnan(x) or math.isnan(y):
        assert (a < b) == (math.isnan(x) and not math.isnan(y))
    else:
        assert (a < b, a == b) == (x < y, x == y)


def test_sortable_tells_all_65536_bit_patterns_apart_but_the_zeros_and_the_nans() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    nans = int(np.isnan(every).sum())
    assert len(np.unique(sortable(every))) == (1 << 16) - (nans - 1) - 1


@pytest.mark.parametrize(
    ("scores", "k", "rows"),
    [
        ([1, 3, 2], 2, [1, 2]),
        ([2, 3, 2, 3], 3, [1, 3, 0]),
        ([0.0, -0.0, 0.0], 2, [0, 1]),
        ([-0.0, 0.0], 1, [0]),
        ([math.nan, -math.inf, math.inf], 9, [2, 1]),
        ([math.nan, math.nan], 1, []),
        ([], 5, []),
        ([7.0], 0, []),
    ],
)
def test_known_rankings(scores: list[float], k: int, rows: list[int]) -> None:
    assert top_rows(np.array(scores, np.float16), k).tolist() == rows
