"""Channels: what is known of them, which are strongest on an image, which go with another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitscope.server.errors import InvalidArgumentError, NotFoundError, NotKeptHereError
from vitscope.server.going import check_caller
from vitscope.server.queries.checks import (
    check_channel,
    check_channels,
    check_k,
    check_patch,
    check_pooling,
    check_rectangle,
    check_valid,
    find_layer,
    find_layers,
    view_of,
)
from vitscope.server.queries.model import Halves, LiveModel
from vitscope.server.queries.recompute import activations_of
from vitscope.store.generation import Generation
from vitscope.store.geometry import Rectangle, box_share, tells_apart
from vitscope.store.layout import scores_name
from vitscope.store.manifest import QUANTILES, LayerRecord, Pooling
from vitscope.store.ranking import sortable
from vitscope.store.statistics import ScoreStatistics, changing

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of some channels of a layer."""

    channels: Sequence[int]
    """(M,)"""
    values: ScoreStatistics
    """Of these channels."""


@dataclass(frozen=True, slots=True)
class Channels:
    """Channels of several layers, in an order."""

    layers: Sequence[str]
    """(k,)"""
    channels: npt.NDArray[np.int64]
    """(k,)"""
    scores: Floats
    """(k,)"""
    percentiles: Doubles | None = None
    """(k,) where they were asked for."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch of an image, from the top and from the left of a layer's grid."""

    y: int
    x: int


@dataclass(frozen=True, slots=True)
class BoxNumber:
    """A labelled box of an image, from 0."""

    number: int


Where = Pooling | Patch | Rectangle | BoxNumber


def channel_statistics(
    generation: Generation, layer_name: str, pooling: Pooling, channels: Sequence[int]
) -> Statistics:
    """Statistics of channels over all valid images; of all channels where none is given."""
    layer = find_layer(generation, layer_name)
    check_pooling(layer, pooling)
    chosen = check_channels(layer, channels)
    found = generation.statistics(layer.name, pooling)
    at = np.array(chosen, np.int64)
    values = ScoreStatistics(
        found.mean[at], found.variance[at], found.active[at], found.quantiles[at]
    )
    return Statistics(chosen, values)


def top_channels(
    generation: Generation,
    row: int,
    layer_names: Sequence[str],
    where: Where,
    k: int | None,
    *,
    percentiles: bool,
    live: LiveModel | None = None,
) -> Channels:
    """The k channels that are strongest on an image, or on a part of it.

    By their score, or by the share of valid images that score lower on the same channel; ties by
    score, then earlier layer, then lower channel. What a part needs and was not kept is computed by
    the live model, where there is one that can read the pictures.
    """
    check_valid(generation, row)
    layers = find_layers(generation, layer_names)
    k = check_k(k, sum(layer.channels for layer in layers), "channel")
    part = _part(generation, row, where)
    compared = _compared(part) if percentiles else None
    lost = [] if isinstance(part, str) else [layer.name for layer in layers if not layer.dense]
    again: Mapping[str, Halves] = {}
    if lost and live is not None and live.has_pictures:
        again = activations_of(generation, live, row, lost)
    if compared and compared != part:
        for layer in layers:
            check_pooling(layer, compared, "measure")
    field = "box" if isinstance(where, BoxNumber) else "rectangle"
    scores = [
        _scores(generation, layer, row, part, again.get(layer.name), field) for layer in layers
    ]
    return ranked_channels(generation, layers, scores, compared, k)


def ranked_channels(
    generation: Generation,
    layers: Sequence[LayerRecord],
    scores: Sequence[Doubles],
    compared: Pooling | None,
    k: int,
) -> Channels:
    """The k strongest by scores (C,) of each layer's channels on some image, in the index or not.

    By percentiles over the images' scores of the pooling `compared`, or by the scores themselves.
    """
    number = np.concatenate([np.full(layer.channels, at) for at, layer in enumerate(layers)])
    channel = np.concatenate([np.arange(layer.channels) for layer in layers])
    flat = np.concatenate(scores)
    shares = _Percentiles(generation, layers, compared, scores).best(k) if compared else None
    keys = [-flat] if shares is None else [-flat, -shares]
    # NaN sorts last: a channel whose score is none, or one that cannot be among the best.
    best = np.lexsort(keys)[:k]
    best = best[~np.isnan(flat[best])]
    return Channels(
        [layers[at].name for at in number[best].tolist()],
        channel[best],
        flat[best].astype(np.float32),
        None if shares is None else shares[best],
    )


def _part(generation: Generation, row: int, where: Where) -> Pooling | Patch | Rectangle:
    """The part of an image that is asked about; a box's number becomes its corners."""
    if isinstance(where, BoxNumber):
        boxes = generation.rows.boxes(row)
        if not 0 <= where.number < len(boxes):
            there = f"boxes 0 to {len(boxes) - 1}" if boxes else "no labelled box"
            raise NotFoundError(f"box: row {row} has no box {where.number}; it has {there}.")
        return boxes[where.number].corners
    if isinstance(where, tuple):
        return check_rectangle(where)
    return where


def _compared(part: Pooling | Patch | Rectangle) -> Pooling:
    """Whose scores a part's are compared with over the data set."""
    if isinstance(part, tuple):
        raise InvalidArgumentError(
            "measure: a rectangle or box has no percentiles, since its score is a difference; ask "
            "for MEASURE_VALUE."
        )
    return "max" if isinstance(part, Patch) else part


def _scores(
    generation: Generation,
    layer: LayerRecord,
    row: int,
    part: Pooling | Patch | Rectangle,
    again: Halves | None,
    field: str,
) -> Doubles:
    """The scores (C,) of all channels of a layer on a part of an image.

    `again` are its activations (C, T) where they were computed again; `field` is where the request
    has a rectangle.
    """
    if isinstance(part, str):
        check_pooling(layer, part)
        return generation.image_scores(layer.name, part, row).astype(np.float64)
    if not layer.dense and again is None:
        raise NotKeptHereError(
            f"layers: this index keeps pooled scores of {layer.name}, not its channels on every "
            "patch; ask by a pooling, keep all of the layer (--retain-all), or serve the index "
            "with --live and --data."
        )
    tokens = layer.tokens

    def activations() -> Halves:
        return generation.activations(layer.name, row, slice(None)) if again is None else again

    if isinstance(part, Patch):
        check_patch(layer, part.y, part.x)
        at = len(tokens.prefix) + part.y * tokens.width + part.x
        return activations()[:, at].astype(np.float64)
    share = box_share(tokens, part, view_of(generation, row), generation.manifest.model.input_size)
    if not tells_apart(share):
        side = "inside" if share.mean() < 0.5 else "outside"
        raise InvalidArgumentError(
            f"{field}: no patch of {layer.name} on row {row} lies {side} of the {field}, so that "
            "there is nothing to compare; choose one that covers a part of what the model saw."
        )
    inside, outside = share.sum(), (1 - share).sum()
    values = activations()[:, len(tokens.prefix) :].astype(np.float64)
    flat = share.reshape(-1)
    contrast: Doubles = values @ (flat / inside) - values @ ((1 - flat) / outside)
    return contrast


class _Percentiles:
    """Shares of valid images that score lower, for the channels that may be among the best.

    The stored quantiles bound every channel's share from both sides, so that scores are counted
    only of those that can still be among the best.
    """

    def __init__(
        self,
        generation: Generation,
        layers: Sequence[LayerRecord],
        pooling: Pooling,
        scores: Sequence[Doubles],
    ) -> None:
        self._generation = generation
        self._layers = layers
        self._pooling = pooling
        self._scores = scores

    def best(self, k: int) -> Doubles:
        """The share of each channel of all layers, one after the other; NaN where not counted."""
        bounds = [self._bounds(*each) for each in zip(self._layers, self._scores, strict=True)]
        least, most = (np.concatenate(each) for each in zip(*bounds, strict=True))
        there = ~np.isnan(np.concatenate(self._scores))
        k = min(k, int(there.sum()))
        shares = np.full(len(least), np.nan)
        if not k:
            return shares
        # At least k channels reach this: who cannot, is not among the best.
        bar = np.partition(least[there], int(there.sum()) - k)[int(there.sum()) - k]
        wanted = np.flatnonzero(there & (most >= bar))
        start = 0
        for layer, scores in zip(self._layers, self._scores, strict=True):
            mine = wanted[(wanted >= start) & (wanted < start + layer.channels)] - start
            for channel in mine.tolist():
                shares[start + channel] = self._share(layer, channel, scores[channel])
            start += layer.channels
        return shares

    def _bounds(self, layer: LayerRecord, scores: Doubles) -> tuple[Doubles, Doubles]:
        """What the share of each channel (C,) is at least and at most."""
        quantiles = self._generation.statistics(layer.name, self._pooling).quantiles  # [C, Q]
        above = scores[:, None] > quantiles.astype(np.float64)
        levels = np.array(QUANTILES)
        # Where a score is none, quantiles are not known, and nor are bounds.
        unknown = np.isnan(quantiles).any(1)
        least = np.where(unknown, 0.0, np.where(above, levels, 0.0).max(1))
        most = np.where(unknown, 1.0, np.where(above, 1.0, levels).min(1))
        return least, most

    def _share(self, layer: LayerRecord, channel: int, score: float) -> float:
        check_caller()
        column = self._generation.scores(layer.name, self._pooling, channel)
        order, mine = sortable(column), sortable(np.array([score], np.float16))[0]
        lower = np.count_nonzero(order < mine) - np.count_nonzero(np.isnan(column))
        return float(lower / self._generation.manifest.valid_rows)


def similar_channels(
    generation: Generation, layer_name: str, channel: int, k: int | None, layer_names: Sequence[str]
) -> Channels:
    """The k channels whose mean-pooled scores correlate most with a channel's; exact.

    Ties by earlier layer, then lower channel. Channels that never change correlate with none.
    """
    layer = find_layer(generation, layer_name)
    check_channel(layer, channel)
    layers = find_layers(generation, layer_names or [layer_name])
    k = check_k(k, sum(each.channels for each in layers) - (layer in layers), "other channel")
    found = [_correlation(generation, layer, channel, other) for other in layers]
    number = np.concatenate([np.full(each.channels, at) for at, each in enumerate(layers)])
    channels = np.concatenate([np.arange(each.channels) for each in layers])
    flat = np.concatenate(found)
    best = np.lexsort([-flat])[:k]
    best = best[~np.isnan(flat[best])]
    return Channels([layers[at].name for at in number[best].tolist()], channels[best], flat[best])


def _correlation(
    generation: Generation, layer: LayerRecord, channel: int, other: LayerRecord
) -> Floats:
    """Correlation (C,) of a channel with all of a layer; NaN with itself."""
    if other == layer:
        found = generation.correlation(layer.name, channel).copy()
        found[channel] = np.nan
        return found
    valid = generation.rows.valid
    own = generation.scores(layer.name, "mean", channel)[valid].astype(np.float64)
    centred = own - own.mean()
    statistics = generation.statistics(other.name, "mean")
    total = np.zeros(other.channels)
    done = 0
    for start in range(0, len(valid), generation.manifest.unit_rows):
        check_caller()
        part = slice(start, min(start + generation.manifest.unit_rows, len(valid)))
        scores = generation.read(other.name, scores_name("mean"), slice(None), part)
        some = scores[:, valid[part]].astype(np.float64) - statistics.mean[:, None]
        total += some @ centred[done : done + some.shape[1]]
        done += some.shape[1]
    deviation = changing(own.mean(), np.sqrt(np.square(centred).mean()))
    others = changing(statistics.mean, np.sqrt(statistics.variance))
    with np.errstate(invalid="ignore"):
        return np.clip(total / (len(own) * deviation * others), -1, 1).astype(np.float32)
