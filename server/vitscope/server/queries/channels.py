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

_COUNTED_AT_ONCE = 8 << 20
"""Scores of several channels that are read and counted together."""


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

    A channel's kept top scores tell the share of an image that is among them; the last of them and
    the stored quantiles bound all others, so that scores are counted only of channels that can
    still be among the best.
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
        self._scores = [each.astype(np.float16) for each in scores]

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
        wanted = there & (most >= bar)
        known = wanted & (least == most)
        shares[known] = least[known]
        start = 0
        for layer, scores in zip(self._layers, self._scores, strict=True):
            part = slice(start, start + layer.channels)
            left = np.flatnonzero(wanted[part] & ~known[part])
            step = max(1, _COUNTED_AT_ONCE // self._generation.manifest.rows)
            for first in range(0, len(left), step):
                some = left[first : first + step]
                shares[start + some] = self._counted(layer, some, scores[some])
            start += layer.channels
        return shares

    def _bounds(
        self, layer: LayerRecord, scores: npt.NDArray[np.float16]
    ) -> tuple[Doubles, Doubles]:
        """What the share of each channel (C,) is at least and at most; equal where it is known."""
        quantiles = self._generation.statistics(layer.name, self._pooling).quantiles  # [C, Q]
        above = sortable(scores)[:, None] > sortable(quantiles)
        levels = np.array(QUANTILES)
        least = np.where(above, levels, 0.0).max(1)
        # Fewer than its level are below a quantile that the score does not pass.
        most = np.where(above, 1.0, np.nextafter(levels, -1).clip(0)).min(1)
        valid = self._generation.manifest.valid_rows
        kept = self._generation.top_scores(layer.name, self._pooling)  # [C, K]
        reached = np.count_nonzero(sortable(kept) >= sortable(scores)[:, None], axis=1)
        known = (reached < kept.shape[1]) | (kept.shape[1] >= valid)
        share = (valid - reached) / valid
        least = np.where(known, share, least)
        most = np.where(known, share, np.minimum(most, share))
        # Where a score is none, neither quantiles nor ranks tell how many there are.
        unknown = np.isnan(quantiles).any(1)
        return np.where(unknown, 0.0, least), np.where(unknown, 1.0, most)

    def _counted(
        self,
        layer: LayerRecord,
        channels: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float16],
    ) -> Doubles:
        """The shares (M,) of channels (M,), of whose images all scores are looked at."""
        check_caller()
        read = self._generation.read(layer.name, scores_name(self._pooling), channels)  # [M, N]
        lower = np.count_nonzero(sortable(read) < sortable(scores)[:, None], axis=1)
        # NaN lies below everything.
        counted = lower - np.count_nonzero(np.isnan(read), axis=1)
        shares: Doubles = counted / self._generation.manifest.valid_rows
        return shares


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
