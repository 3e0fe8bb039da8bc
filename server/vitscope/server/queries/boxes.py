"""Where channels look: patch maps held against the labelled boxes of their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from vitscope.server.errors import NotKeptHereError
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
from vitscope.store.manifest import LayerRecord
from vitscope.store.ranking import largest

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Measure = Literal["contrast", "inside", "auc"]

_MAPS_AT_ONCE = 4_096


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
    images, inside_images = np.zeros((2, len(chosen)), np.int64)
    means = np.full((4, len(chosen)), np.nan)
    for place, channel in enumerate(chosen):
        rows, scores = shares.scores(channel)
        images[place] = len(rows)
        inside_images[place] = np.count_nonzero(~np.isnan(scores.inside))
        if len(rows):
            means[:, place] = [_mean(each) for each in _columns(scores)]
    return ChannelScores(chosen, images, inside_images, Scores(*means))


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
        self._held: dict[int, Doubles | None] = {}

    def scores(self, channel: int) -> tuple[Rows, Scores]:
        """Rows (M,), ascending, whose maps of the channel are kept, and how these lie to boxes."""
        rows, parts = [self._among[:0]], [Scores(*np.zeros((4, 0)))]
        kept = kept_rows(self._generation, self._layer, channel, self._among)
        for start in range(0, len(kept), _MAPS_AT_ONCE):
            found = [
                (row, self._share(row)) for row in kept[start : start + _MAPS_AT_ONCE].tolist()
            ]
            shares = {row: share for row, share in found if share is not None}
            if not shares:
                continue
            some = np.array(list(shares), np.int64)
            _, maps = kept_maps(self._generation, self._layer, channel, some)
            flat = maps.reshape(len(maps), -1).astype(np.float64)
            rows.append(some)
            parts.append(against_boxes(flat, np.array(list(shares.values()))))
        columns = zip(*map(_columns, parts), strict=True)
        return np.concatenate(rows), Scores(*map(np.concatenate, columns))

    def _share(self, row: int) -> Doubles | None:
        """How the boxes of an image cover its patches (T,); None where that tells nothing apart."""
        if row not in self._held:
            self._held[row] = self._covered(row)
        return self._held[row]

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


def against_boxes(maps: Doubles, shares: Doubles) -> Scores:
    """How maps (M, T) lie to boxes that cover shares (M, T) of their patches.

    The area under the curve is that of Hanley and McNeil, "The meaning and use of the area under a
    receiver operating characteristic curve", 1982, of patches weighted by their area.
    """
    cells = maps.shape[1]
    positive = maps.clip(0)
    total = positive.sum(1)
    inside = np.full(len(maps), np.nan)
    np.divide((positive * shares).sum(1), total, out=inside, where=total > 0)
    within = shares.sum(1)
    without = cells - within
    contrast = (maps * shares).sum(1) / within - (maps * (1 - shares)).sum(1) / without

    order = np.argsort(maps, 1, kind="stable")
    values = np.take_along_axis(maps, order, 1)
    mine = np.take_along_axis(shares, order, 1)
    outside = np.cumsum(1 - mine, 1)  # up to each patch, from the lowest
    first, last = _ends_of_equals(values)
    padded = np.concatenate([np.zeros((len(maps), 1)), outside], 1)
    lower = np.take_along_axis(padded, first, 1)
    up_to = np.take_along_axis(outside, last, 1)
    # What lies lower counts whole, what is equal half.
    auc = (mine * (lower + up_to)).sum(1) / 2 / (within * without)
    return Scores(inside, within / cells, auc, contrast)


def _ends_of_equals(values: Doubles) -> tuple[Rows, Rows]:
    """For sorted values (M, T), where the run of equals of each begins and ends: (M, T)."""
    place = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    changes = values[:, 1:] != values[:, :-1]
    edge = np.ones((len(values), 1), np.bool_)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, changes], 1), place, 0), 1)
    ends = np.where(np.concatenate([changes, edge], 1), place, values.shape[1])
    last = np.minimum.accumulate(ends[:, ::-1], 1)[:, ::-1]
    return first, last


def _columns(scores: Scores) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    return scores.inside, scores.area, scores.auc, scores.contrast


def _mean(values: Doubles) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")
