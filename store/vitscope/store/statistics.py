"""What is known of a channel over the whole data set: moments and quantiles of its scores, and how
its scores go with those of the other channels of its layer.

All from the stored float16 scores of valid rows, accumulated in float64 in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.store import layout
from vitscope.store.arrays import Array, leading_spec, line_spec, open_array, write_array
from vitscope.store.manifest import QUANTILES, LayerRecord, Pooling

Doubles = npt.NDArray[np.float64]
Halves = npt.NDArray[np.float16]

_ELEMENTS = 8 << 20
"""Scores read at once; an eighth as many are widened at once."""
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
    parts = [_statistics(part) for part in _channel_groups(scores, rows)]
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
    deviation = np.sqrt(np.clip(np.diag(covariance), 0, None))
    # What float64 leaves of a constant score is noise, not variance.
    deviation[deviation <= 1e-7 * np.abs(mean)] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.clip(covariance / np.outer(deviation, deviation), -1, 1)
    spec = leading_spec("float32", correlation.shape, ("channel", "other_channel"), 4)
    write_array(group / layout.CORRELATION, correlation.astype(np.float32), spec)


def _channel_groups(scores: Array, rows: npt.NDArray[np.int64]) -> Iterator[Doubles]:
    """The scores (G, V) of a few channels at a time on the valid `rows` (V,), widened."""
    channels, images = scores.shape
    chunks = _ELEMENTS // max(images, 1) // _CHUNK_CHANNELS
    step = min(max(chunks, 1) * _CHUNK_CHANNELS, _CHANNELS)
    group = max(step // _CHUNK_CHANNELS, 1)
    for start in range(0, channels, step):
        read = scores.read(slice(start, min(start + step, channels)))
        for first in range(0, len(read), group):
            yield read[first : first + group, rows].astype(np.float64, order="C")


def _units(scores: Array, unit_rows: int, valid: npt.NDArray[np.bool_]) -> Iterator[Doubles]:
    for start in range(0, len(valid), unit_rows):
        stop = min(start + unit_rows, len(valid))
        part = scores.read(slice(None), slice(start, stop))
        yield part[:, valid[start:stop]].astype(np.float64)


def _statistics(scores: Doubles) -> ScoreStatistics:
    """Statistics of scores (G, V) of valid images; NaN where there are none."""
    channels, images = scores.shape
    if not images:
        nothing = np.full(channels, np.nan)
        empty = np.full((channels, len(QUANTILES)), np.nan, np.float16)
        return ScoreStatistics(nothing, nothing, nothing, empty)
    quantiles = np.quantile(scores, QUANTILES, axis=1, method="inverted_cdf").T
    active = (scores > 0).mean(1)
    mean = _total(scores.copy()) / images
    scores -= mean[:, None]
    scores *= scores
    return ScoreStatistics(mean, _total(scores) / images, active, quantiles.astype(np.float16))


def _total(values: Doubles) -> Doubles:
    """Sums (G,) of `values` (G, V), which it overwrites."""
    # One after the other: how NumPy's own sum pairs its terms depends on shape and layout.
    return np.add.accumulate(values, axis=1, out=values)[:, -1].copy()
