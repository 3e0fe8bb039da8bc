"""What is known of a channel over the whole data set: moments and quantiles of its scores, and how
its scores go with those of the other channels of its layer.

All from the stored float16 scores of valid rows, accumulated in float64 in the order of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.store import layout
from vitscope.store.arrays import Array, leading_spec, line_spec, open_array, write_array
from vitscope.store.manifest import QUANTILES, LayerRecord, Pooling
from vitscope.store.ranking import quantile_place, scores_of, sortable

Doubles = npt.NDArray[np.float64]
Halves = npt.NDArray[np.float16]

_ELEMENTS = 4 << 20
"""Scores that a thread reads at once, at least those of a chunk's channels."""
_AT_ONCE = 256 << 20
"""Scores that all threads work at, with about 10 bytes each."""
_ROWS = 4096
"""Images widened at once."""
_CHANNELS = 64
_CHUNK_CHANNELS = 8


@dataclass(frozen=True, slots=True)
class ScoreStatistics:
    """Statistics of every channel's per-image scores, for one layer and pooling."""

    mean: Doubles
    """(C,)"""
    variance: Doubles
    """(C,), of the population."""
    active: Doubles
    """(C,), share of images with a score above 0."""
    quantiles: Halves
    """(C, Q) at the levels `QUANTILES`; each is the score of some image."""


def write_statistics(
    group: Path, layer: LayerRecord, pooling: Pooling, rows: npt.NDArray[np.int64]
) -> None:
    """Compute and write the statistics of the scores in `group` over the valid `rows`."""
    scores = open_array(group / layout.scores_name(pooling))
    channels, images = scores.shape
    chunks = _ELEMENTS // max(images, 1) // _CHUNK_CHANNELS
    step = min(max(chunks, 1) * _CHUNK_CHANNELS, _CHANNELS)

    def some(first: int) -> list[ScoreStatistics]:
        read = scores.read(slice(first, min(first + step, channels)))
        groups = range(0, len(read), _CHUNK_CHANNELS)
        return [_statistics(read[at : at + _CHUNK_CHANNELS, rows]) for at in groups]

    # Bounded by the memory that each thread takes.
    threads = min(os.cpu_count() or 1, max(1, _AT_ONCE // (step * max(images, 1))))
    with ThreadPoolExecutor(threads) as pool:
        parts = [part for several in pool.map(some, range(0, channels, step)) for part in several]
    for name in ("mean", "variance", "active"):
        values = np.concatenate([getattr(part, name) for part in parts])
        path = group / layout.statistic_name(name, pooling)
        write_array(path, values, line_spec("float64", layer.channels, "channel"))
    quantiles = np.concatenate([part.quantiles for part in parts])
    spec = leading_spec("float16", quantiles.shape, ("channel", "quantile"), 256)
    write_array(group / layout.statistic_name("quantiles", pooling), quantiles, spec)


def read_statistics(group: Path, pooling: Pooling, opener: Any = open_array) -> ScoreStatistics:
    """The statistics that `write_statistics` wrote."""
    read = {
        name: opener(group / layout.statistic_name(name, pooling)).read()
        for name in ("mean", "variance", "active", "quantiles")
    }
    return ScoreStatistics(**read)


def write_correlation(
    group: Path, layer: LayerRecord, unit_rows: int, valid: npt.NDArray[np.bool_]
) -> None:
    """Write Pearson's correlation (C, C) between the channels' mean-pooled scores.

    A channel that never changes has no correlation: NaN.
    """
    scores = open_array(group / layout.scores_name("mean"))
    count = int(valid.sum())
    total = np.zeros(layer.channels)
    product = np.zeros((layer.channels, layer.channels))
    for part in _units(scores, unit_rows, valid):
        total += part.sum(1)
        product += part @ part.T
    mean = total / max(count, 1)
    covariance = product / max(count, 1) - np.outer(mean, mean)
    deviation = changing(mean, np.sqrt(np.clip(np.diag(covariance), 0, None)))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.clip(covariance / np.outer(deviation, deviation), -1, 1)
    spec = leading_spec("float32", correlation.shape, ("channel", "other_channel"), 4)
    write_array(group / layout.CORRELATION, correlation.astype(np.float32), spec)


def changing(mean: Doubles, deviation: Doubles) -> Doubles:
    """Deviations of scores, NaN for those that never change: what float64 leaves there is noise."""
    return np.where(deviation <= 1e-7 * np.abs(mean), np.nan, deviation)


def _units(scores: Array, unit_rows: int, valid: npt.NDArray[np.bool_]) -> Iterator[Doubles]:
    for start in range(0, len(valid), unit_rows):
        stop = min(start + unit_rows, len(valid))
        part = scores.read(slice(None), slice(start, stop))
        yield part[:, valid[start:stop]].astype(np.float64)


def _statistics(scores: Halves) -> ScoreStatistics:
    """Statistics of scores (G, V) of valid images; NaN where there are none."""
    channels, images = scores.shape
    if not images:
        nothing = np.full(channels, np.nan)
        empty = np.full((channels, len(QUANTILES)), np.nan, np.float16)
        return ScoreStatistics(nothing, nothing, nothing, empty)
    # Sixteen bits are sorted by their digits, without comparing.
    order = np.sort(sortable(scores), axis=1, kind="stable")
    quantiles = scores_of(order[:, [quantile_place(level, images) for level in QUANTILES]])
    # NaN comes first: where there is one, nothing is known.
    quantiles[np.isnan(quantiles[:, 0])] = np.nan
    mean = _total(scores, lambda wide: wide) / images
    # Where a score is infinite, nothing is known either.
    with np.errstate(invalid="ignore"):
        variance = _total(scores, lambda wide: np.square(wide - mean)) / images
    return ScoreStatistics(mean, variance, (order > 0).mean(1), quantiles)


def _total(scores: Halves, term: Callable[[Doubles], Doubles]) -> Doubles:
    """Sums (G,) of the terms of scores (G, V), each added to those before it."""
    total = np.zeros(len(scores))
    for start in range(0, scores.shape[1], _ROWS):
        terms = term(scores[:, start : start + _ROWS].T.astype(np.float64, order="C"))  # [R, G]
        terms[0] += total
        # Along the axis whose values lie next to each other, NumPy would add in pairs.
        alone = terms.shape[1] == 1
        total = np.add.accumulate(terms)[-1] if alone else np.add.reduce(terms, axis=0)
    return total
