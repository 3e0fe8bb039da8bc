"""Two indexes of the same pictures, or of copies of them, held against each other row by row."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Literal
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import numpy.typing as npt

from vitscope.server.errors import NotKeptHereError
from vitscope.server.going import check_caller
from vitscope.server.queries.checks import check_channel, check_k, check_pooling, find_layer
from vitscope.server.queries.filters import ImageFilter, select
from vitscope.store.generation import Generation
from vitscope.store.layout import scores_name
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.store.statistics import changing

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Change = Literal["effect", "difference", "correlation"]

_ROWS = 4_096
_CHANNELS = 256
"""A block of scores in float64: 8 MiB."""


@dataclass(frozen=True, slots=True)
class ChangedChannels:
    """Channels of a layer that two indexes share, in an order."""

    channels: Rows
    """(k,)"""
    mean: Doubles
    """(k,), of the first index."""
    other_mean: Doubles
    """(k,)"""
    difference: Doubles
    """(k,), other minus first."""
    effect: Doubles
    """(k,), the difference in standard deviations of the first."""
    correlation: Doubles
    """(k,), between the two."""
    images: int
    """That take part."""


@dataclass(frozen=True, slots=True)
class ChangedImages:
    """Images by the change of a channel, in an order."""

    rows: Rows
    """(k,)"""
    scores: npt.NDArray[np.float16]
    """(k,)"""
    other_scores: npt.NDArray[np.float16]
    """(k,)"""
    differences: npt.NDArray[np.float32]
    """(k,), other minus first; these rank."""
    candidates: int


def changed_channels(
    generation: Generation,
    other: Generation,
    layer_name: str,
    pooling: Pooling,
    asked: ImageFilter,
    measure: Change,
    k: int | None,
    *,
    lowest: bool,
) -> ChangedChannels:
    """The k channels that change most from an index to another; exact, ties by lower channel."""
    layer = _shared_layer(generation, other, layer_name, pooling)
    k = check_k(k, layer.channels, "channel")
    rows = _paired(generation, other, asked)
    moments = _Moments(generation, other, layer, pooling)
    moments.add(rows)
    found = moments.changes()
    values = getattr(found, measure)
    there = np.flatnonzero(~np.isnan(values))
    best = there[np.lexsort((there, values[there] if lowest else -values[there]))][:k]
    return ChangedChannels(
        best,
        found.mean[best],
        found.other_mean[best],
        found.difference[best],
        found.effect[best],
        found.correlation[best],
        len(rows),
    )


def changed_images(
    generation: Generation,
    other: Generation,
    layer_name: str,
    channel: int,
    pooling: Pooling,
    asked: ImageFilter,
    k: int | None,
    *,
    lowest: bool,
) -> ChangedImages:
    """The k images on which a channel changes most; exact, ties of float32 by lower row."""
    layer = _shared_layer(generation, other, layer_name, pooling)
    check_channel(layer, channel)
    k = check_k(k, generation.manifest.valid_rows, "valid image")
    rows = _paired(generation, other, asked)
    mine, theirs = (held.scores(layer.name, pooling, channel)[rows] for held in (generation, other))
    differences = (theirs.astype(np.float64) - mine.astype(np.float64)).astype(np.float32)
    there = np.flatnonzero(~np.isnan(differences))
    order = differences[there] if lowest else -differences[there]
    best = there[np.lexsort((rows[there], order))][:k]
    return ChangedImages(rows[best], mine[best], theirs[best], differences[best], len(rows))


def _shared_layer(
    generation: Generation, other: Generation, name: str, pooling: Pooling
) -> LayerRecord:
    layer = find_layer(generation, name)
    check_pooling(layer, pooling)
    theirs = {each.name: each for each in other.manifest.layers}.get(name)
    what = ""
    if theirs is None:
        what = "is not there"
    elif theirs.channels != layer.channels:
        what = f"has {theirs.channels} channels instead of {layer.channels}"
    elif pooling not in theirs.poolings:
        what = f"has no {pooling} pooling"
    if what:
        raise NotKeptHereError(
            f"other: {layer.name} of that index {what}; compare indexes whose layers are alike."
        )
    return layer


def _paired(generation: Generation, other: Generation, asked: ImageFilter) -> Rows:
    """Rows that are valid in both indexes and pass the filter of the first, ascending."""
    _check_same_pictures(generation, other)
    among = select(generation, asked)
    rows = np.flatnonzero(generation.rows.valid) if among is None else among
    paired: Rows = rows[other.rows.valid[rows]]
    return paired


_same: WeakKeyDictionary[Generation, WeakSet[Generation]] = WeakKeyDictionary()
"""Generations whose pictures were found to be those of another one."""
_lock = Lock()


def _check_same_pictures(generation: Generation, other: Generation) -> None:
    """Raise unless row i of both goes by the same key, but for what follows the last dot."""
    with _lock:
        if other in _same.setdefault(generation, WeakSet()):
            return
    counts = (generation.manifest.rows, other.manifest.rows)
    if counts[0] != counts[1]:
        raise NotKeptHereError(
            f"other: it has {counts[1]} rows and the index {counts[0]}; compare indexes of the "
            "same pictures, or of copies of all of them."
        )
    alike = generation.rows.has_keys_of(other.rows)
    for row in range(0 if alike else counts[0]):
        if row % _ROWS == 0:
            check_caller()
        keys = generation.rows.key(row), other.rows.key(row)
        if keys[0] != keys[1] and _stem(keys[0]) != _stem(keys[1]):
            raise NotKeptHereError(
                f"other: row {row} is {keys[1][:80]!r} there and {keys[0][:80]!r} in the index; "
                "compare indexes of the same pictures, in the same order."
            )
    with _lock:
        _same[generation].add(other)


def _stem(key: str) -> str:
    """The key without an ending such as .jpg; a number behind the last dot is no ending."""
    head, dot, tail = key.rpartition(".")
    return head if dot and tail.isalnum() and not tail.isdecimal() else key


class _Moments:
    """Means, and sums of products around them, of paired scores that come in blocks.

    Joined as by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979, so that channels with a few very large scores lose nothing.
    """

    def __init__(
        self, generation: Generation, other: Generation, layer: LayerRecord, pooling: Pooling
    ) -> None:
        self._held = (generation, other)
        self._layer, self._array = layer, scores_name(pooling)
        # Of their own, since a joined mean is lost where a score is infinite.
        self._sums = np.zeros((2, layer.channels))
        self._means = np.zeros((2, layer.channels))
        self._products = np.zeros((3, layer.channels))
        self._count = 0

    def add(self, rows: Rows) -> None:
        """Paired scores of rows (M,), ascending."""
        for start in range(0, int(rows[-1]) + 1 if len(rows) else 0, _ROWS):
            first, last = np.searchsorted(rows, (start, start + _ROWS))
            if last > first:
                stop = min(start + _ROWS, self._held[0].manifest.rows)
                self._add_block(slice(start, stop), rows[first:last] - start)

    def _add_block(self, part: slice, places: Rows) -> None:
        before, here = self._count, len(places)
        self._count += here
        for first in range(0, self._layer.channels, _CHANNELS):
            check_caller()
            some = slice(first, min(first + _CHANNELS, self._layer.channels))
            a, b = (
                held.read(self._layer.name, self._array, some, part)[:, places].astype(np.float64)
                for held in self._held
            )
            sums = np.stack([a.sum(1), b.sum(1)])
            means = sums / here
            a -= means[0][:, None]
            b -= means[1][:, None]
            shift = means - self._means[:, some]
            apart = np.stack([shift[0] ** 2, shift[1] ** 2, shift[0] * shift[1]])
            inner = np.stack([(a * a).sum(1), (b * b).sum(1), (a * b).sum(1)])
            self._products[:, some] += inner + apart * (before * here / self._count)
            self._means[:, some] += shift * (here / self._count)
            self._sums[:, some] += sums

    def changes(self) -> ChangedChannels:
        """Of all channels of the layer; NaN where no image takes part."""
        means = self._sums / self._count if self._count else np.full_like(self._sums, np.nan)
        aa, bb, ab = self._products / max(self._count, 1)
        deviation, other = (
            changing(mean, np.sqrt(square)) for mean, square in zip(means, (aa, bb), strict=True)
        )
        difference = means[1] - means[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            effect = difference / deviation
            correlation = np.clip(ab / (deviation * other), -1, 1)
        return ChangedChannels(
            np.arange(self._layer.channels),
            means[0],
            means[1],
            difference,
            effect,
            correlation,
            self._count,
        )
