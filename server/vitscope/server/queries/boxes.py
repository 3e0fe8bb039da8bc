"""Where channels look: patch maps held against the labelled boxes of their images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from vitscope.server.errors import NotKeptHereError
from vitscope.server.going import check_caller
from vitscope.server.queries.checks import (
    check_channel,
    check_channels,
    check_k,
    check_labels,
    find_layer,
    view_of,
)
from vitscope.server.queries.filters import ImageFilter, select
from vitscope.server.queries.maps import kept_maps, kept_rows
from vitscope.store.generation import Generation
from vitscope.store.geometry import boxes_share, tells_apart
from vitscope.store.manifest import LayerRecord, TokenLayout
from vitscope.store.ranking import largest, sortable

Doubles = npt.NDArray[np.float64]
Halves = npt.NDArray[np.float16]
Rows = npt.NDArray[np.int64]
Measure = Literal["contrast", "inside", "auc"]

_MAPS_AT_ONCE = 4_096
_FEW_CHANNELS = 16
"""Of a layer kept whole, that are read one by one: fewer than share its chunks."""
_HELD_SETS = 8
"""Sets of boxes, on a layer's patches, whose shares are remembered for each generation,"""
_HELD_CELLS = 4 << 20
"""and the patches that each of them remembers."""
_CELLS_AT_ONCE = 1 << 19
"""Patches of one image, over several channels, that are sorted together."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Of M maps, how they lie to the boxes of their images; as `BoxScores` on the wire says it."""

    inside: Doubles
    """(M,)"""
    area: Doubles
    """(M,)"""
    auc: Doubles
    """(M,)"""
    contrast: Doubles
    """(M,)"""


@dataclass(frozen=True, slots=True)
class ChannelScores:
    """Means over images, channel by channel."""

    channels: Sequence[int]
    """(C,)"""
    images: Rows
    """(C,)"""
    inside_images: Rows
    """(C,), of which some activation is positive: over these `inside` is averaged."""
    scores: Scores
    """Of the channels."""


@dataclass(frozen=True, slots=True)
class RankedByBox:
    """Images of a channel in an order."""

    rows: Rows
    """(k,)"""
    scores: Scores
    """Of these images."""
    candidates: int


def box_scores(
    generation: Generation,
    layer_name: str,
    channels: Sequence[int],
    box_labels: tuple[str, ...],
    asked: ImageFilter,
) -> ChannelScores:
    """How far channels look at boxes, on average over the images whose maps are kept."""
    layer = find_layer(generation, layer_name)
    chosen = check_channels(layer, channels)
    shares = _Shares(generation, layer, box_labels, asked)
    means = _Means(len(chosen))
    if layer.dense and len(chosen) > _FEW_CHANNELS:
        # An image's channels lie together: one pass over the images, not one for each channel.
        for scores in shares.scores_of_images(np.array(chosen, np.int64)):
            means.add(slice(None), scores)
    else:
        for place, channel in enumerate(chosen):
            _, scores = shares.scores(channel)
            means.add(place, scores)
    return ChannelScores(chosen, means.images, means.known[0], means.of_all())


class _Means:
    """Running means of scores, channel by channel."""

    def __init__(self, channels: int) -> None:
        self.images = np.zeros(channels, np.int64)
        """Images that count (C,)."""
        self.known = np.zeros((4, channels), np.int64)
        """Of these, those of which each score is known."""
        self._sums = np.zeros((4, channels))

    def add(self, channels: int | slice, scores: Scores) -> None:
        """Scores of several images on one channel (M,), or of one image on all channels (C,)."""
        columns = np.stack(_columns(scores))
        known = ~np.isnan(columns)
        values = np.where(known, columns, 0.0)
        if isinstance(channels, int):
            self.images[channels] += columns.shape[1]
            self.known[:, channels] += known.sum(1)
            self._sums[:, channels] += values.sum(1)
        else:
            self.images += 1
            self.known += known
            self._sums += values

    def of_all(self) -> Scores:
        """The mean of every score that is not NaN; NaN where there is none."""
        means = np.full_like(self._sums, np.nan)
        np.divide(self._sums, self.known, out=means, where=self.known > 0)
        return Scores(*means)


def top_images_by_box(
    generation: Generation,
    layer_name: str,
    channel: int,
    box_labels: tuple[str, ...],
    asked: ImageFilter,
    k: int | None,
    measure: Measure,
    *,
    lowest: bool,
) -> RankedByBox:
    """The images on which a channel looks most at boxes, or least; ties by lower row."""
    layer = find_layer(generation, layer_name)
    check_channel(layer, channel)
    k = check_k(k, generation.manifest.valid_rows, "valid image")
    rows, scores = _Shares(generation, layer, box_labels, asked).scores(channel)
    values = getattr(scores, measure)
    there = np.flatnonzero(~np.isnan(values))
    some = -values[there] if lowest else values[there]
    best = there[largest(some, min(k, len(there)))]
    return RankedByBox(rows[best], Scores(*(each[best] for each in _columns(scores))), len(rows))


class _Shares:
    """The images with boxes that take part, and how their patches lie to these."""

    def __init__(
        self,
        generation: Generation,
        layer: LayerRecord,
        box_labels: tuple[str, ...],
        asked: ImageFilter,
    ) -> None:
        table = generation.rows
        if not table.boxed().any():
            raise NotKeptHereError(
                "layer: this index has no labelled boxes to hold maps against; index pictures "
                "whose boxes are known."
            )
        check_labels("box_labels", box_labels, table.box_label_names)
        with_box = replace(asked, has_box=True) if asked.has_box is None else asked
        among = select(generation, with_box)
        if among is not None and box_labels:
            among = among[table.boxed(box_labels)[among]]
        self._generation = generation
        self._layer = layer
        self._labels = box_labels
        self._among = np.zeros(0, np.int64) if among is None else among
        self._held = _held_shares(generation, layer.tokens, box_labels)

    def scores(self, channel: int) -> tuple[Rows, Scores]:
        """Rows (M,), ascending, whose maps of the channel are kept, and how these lie to boxes."""
        rows, parts = [self._among[:0]], [Scores(*np.zeros((4, 0)))]
        kept = kept_rows(self._generation, self._layer, channel, self._among)
        for start in range(0, len(kept), _MAPS_AT_ONCE):
            check_caller()
            found = [
                (row, self._share(row)) for row in kept[start : start + _MAPS_AT_ONCE].tolist()
            ]
            shares = {row: share for row, share in found if share is not None}
            if not shares:
                continue
            some = np.array(list(shares), np.int64)
            _, maps = kept_maps(self._generation, self._layer, channel, some)
            rows.append(some)
            flat = maps.reshape(len(maps), -1)
            parts.append(against_boxes(flat, np.array(list(shares.values()))))
        columns = zip(*map(_columns, parts), strict=True)
        return np.concatenate(rows), Scores(*map(np.concatenate, columns))

    def scores_of_images(self, channels: npt.NDArray[np.int64]) -> Iterator[Scores]:
        """How the maps (C, H, W) of each image that takes part lie to its boxes, image by image.

        Of a layer whose activations are all kept.
        """
        prefix = len(self._layer.tokens.prefix)
        whole = np.array_equal(channels, np.arange(self._layer.channels))
        for row in self._among.tolist():
            check_caller()
            share = self._share(row)
            if share is None:
                continue
            values = self._generation.activations(self._layer.name, row, slice(None))
            maps = values[:, prefix:] if whole else values[channels, prefix:]
            step = max(1, _CELLS_AT_ONCE // maps.shape[1])
            parts = [
                against_boxes(maps[start : start + step], share[None])
                for start in range(0, len(maps), step)
            ]
            yield Scores(*map(np.concatenate, zip(*map(_columns, parts), strict=True)))

    def _share(self, row: int) -> Doubles | None:
        """How the boxes of an image cover its patches (T,); None where that tells nothing apart."""
        if row in self._held:
            return self._held[row]
        share = self._covered(row)
        if len(self._held) * self._layer.tokens.tokens < _HELD_CELLS:
            self._held[row] = share
        return share

    def _covered(self, row: int) -> Doubles | None:
        labels = self._labels
        boxes = [
            box.corners
            for box in self._generation.rows.boxes(row)
            if not labels or box.label in labels
        ]
        size = self._generation.manifest.model.input_size
        share = boxes_share(
            self._layer.tokens, boxes, view_of(self._generation, row, "layer"), size
        )
        return share.ravel() if tells_apart(share) else None


_held: WeakKeyDictionary[Generation, OrderedDict[object, dict[int, Doubles | None]]] = (
    WeakKeyDictionary()
)
_lock = Lock()


def _held_shares(
    generation: Generation, tokens: TokenLayout, box_labels: tuple[str, ...]
) -> dict[int, Doubles | None]:
    """The shares of images that were asked about before: a caller asks channel after channel."""
    key = (tokens, frozenset(box_labels))
    with _lock:
        mine = _held.setdefault(generation, OrderedDict())
        found = mine.setdefault(key, {})
        mine.move_to_end(key)
        while len(mine) > _HELD_SETS:
            mine.popitem(last=False)
    return found


def against_boxes(maps: Halves, shares: Doubles) -> Scores:
    """How maps (M, T) lie to boxes that cover shares of their patches, (M, T), or (1, T) for all.

    The area under the curve is that of Hanley and McNeil, "The meaning and use of the area under a
    receiver operating characteristic curve", 1982, of patches weighted by their area. Without
    meaning, and NaN, where an activation is NaN or both infinities occur.
    """
    cells = maps.shape[1]
    wide = maps.astype(np.float64)
    positive = wide.clip(0)
    total = positive.sum(1)
    inside = np.full(len(maps), np.nan)
    np.divide(_weighted(positive, shares), total, out=inside, where=total > 0)
    within = shares.sum(1)
    without = cells - within
    contrast = _weighted(wide, shares) / within - _weighted(wide, 1 - shares) / without

    # Value and patch in one integer: NumPy sorts those several times faster than it sorts places.
    keys = np.sort(sortable(maps).astype(np.int64) << 32 | np.arange(cells), 1)
    values, order = keys >> 32, keys & 0xFFFF_FFFF
    mine = shares[0][order] if len(shares) == 1 else np.take_along_axis(shares, order, 1)
    # What lies outside before each patch, from the lowest; and after the last.
    outside = np.zeros((len(maps), cells + 1))
    np.cumsum(1 - mine, 1, out=outside[:, 1:])
    first, end = _runs_of_equals(values)
    lower = np.take_along_axis(outside, first, 1)
    up_to = np.take_along_axis(outside, end, 1)
    # What lies lower counts whole, what is equal half.
    auc = (mine * (lower + up_to)).sum(1) / 2 / (within * without)
    auc[np.isnan(contrast)] = np.nan
    return Scores(inside, np.broadcast_to(within / cells, inside.shape), auc, contrast)


def _weighted(maps: Doubles, shares: Doubles) -> Doubles:
    """Sums (M,) of maps (M, T) by the shares of their patches."""
    total: Doubles = maps @ shares[0] if len(shares) == 1 else (maps * shares).sum(1)
    return total


def _runs_of_equals(values: Rows) -> tuple[Rows, Rows]:
    """For sorted values (M, T), where the run of equals of each begins, and where it has ended."""
    place = np.arange(values.shape[1])
    changes = values[:, 1:] != values[:, :-1]
    edge = np.ones((len(values), 1), np.bool_)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, changes], 1), place, 0), 1)
    ends = np.where(np.concatenate([changes, edge], 1), place + 1, values.shape[1])
    return first, np.minimum.accumulate(ends[:, ::-1], 1)[:, ::-1]


def _columns(scores: Scores) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    return scores.inside, scores.area, scores.auc, scores.contrast
