"""Images ranked by a channel, or by their likeness to another image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vitscope.server.errors import InvalidArgumentError
from vitscope.server.going import check_caller
from vitscope.server.queries.checks import (
    check_channel,
    check_channels,
    check_k,
    check_pooling,
    check_row,
    check_valid,
    find_layer,
)
from vitscope.server.queries.filters import ALL, ImageFilter, select
from vitscope.store.generation import HUB_RANKS, Generation
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.store.neighbours import NONE, nearest, scan
from vitscope.store.ranking import band_rows, largest, top_rows

MAX_IMAGES = 1_024
MAX_NAMES = 100_000
"""Images at a time without their pictures."""

Order = Literal["top", "bottom"]
Band = tuple[float, float]
"""Levels of two quantiles."""
Rows = npt.NDArray[np.int64]
Halves = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Distinct:
    """What ranked images where hub images were to give way, for each of them."""

    scores: npt.NDArray[np.float64]
    """(k,)"""
    hubs: npt.NDArray[np.int64]
    """(k,): other channels that have the image among their best ten."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Images in an order."""

    rows: Rows
    """(k,)"""
    scores: npt.NDArray[np.float32]
    """(k,)"""
    distinct: Distinct | None = None


class Near(NamedTuple):
    """Images by their likeness to something."""

    ranking: Ranking
    recall: float
    """Share of the true ten nearest that such a search finds."""
    exact: bool
    """Whether none can have been missed."""


@dataclass(frozen=True, slots=True)
class Question:
    """How the images of a channel are ranked, and which of them."""

    pooling: Pooling = "mean"
    k: int | None = None
    asked: ImageFilter = ALL
    order: Order = "top"
    band: Band | None = None
    distinct: bool = False


@dataclass(frozen=True, slots=True)
class TopImages:
    """The answer for one channel."""

    layer: LayerRecord
    channel: int
    ranking: Ranking
    candidates: int
    """Images that the filter let through."""


def top_images(
    generation: Generation, layer_name: str, channel: int, question: Question
) -> TopImages:
    """The images that a channel ranks first; exact, ties by lower row."""
    layer = find_layer(generation, layer_name)
    check_channel(layer, channel)
    return _ranked(generation, layer, channel, *_checked(generation, layer, question))


def top_images_of_channels(
    generation: Generation, layer_name: str, channels: Sequence[int], question: Question
) -> Iterator[TopImages]:
    """The same for several channels, all where none is given, one after the other.

    What is wrong with the question is raised at once.
    """
    layer = find_layer(generation, layer_name)
    chosen = check_channels(layer, channels)
    checked = _checked(generation, layer, question)
    return (_ranked(generation, layer, channel, *checked) for channel in chosen)


def _checked(
    generation: Generation, layer: LayerRecord, question: Question
) -> tuple[Question, Rows | None, int]:
    """The question, the rows it is about if not all valid ones, and how many images it asks for."""
    check_pooling(layer, question.pooling)
    k = check_k(question.k, generation.manifest.valid_rows, "valid image")
    if question.band is not None and not 0 <= question.band[0] <= question.band[1] <= 1:
        low, high = question.band
        raise InvalidArgumentError(
            f"band is from {low:g} to {high:g}; its ends must lie between 0 and 1, low not above "
            "high."
        )
    if question.distinct and (question.order == "bottom" or question.band is not None):
        raise InvalidArgumentError(
            "distinct ranks the top images; ask for it without ORDER_BOTTOM and band."
        )
    return question, select(generation, question.asked), k


def _ranked(
    generation: Generation,
    layer: LayerRecord,
    channel: int,
    question: Question,
    among: Rows | None,
    k: int,
) -> TopImages:
    candidates = generation.manifest.valid_rows if among is None else len(among)
    plain = question.order == "top" and question.band is None and not question.distinct
    if plain and among is None and k <= layer.top_k:
        rows, scores = generation.top(layer.name, question.pooling, channel)
        ranking = Ranking(rows[:k], scores[:k].astype(np.float32))
        return TopImages(layer, channel, ranking, candidates)
    column = generation.scores(layer.name, question.pooling, channel)  # [N]
    if question.band is not None:
        few = column if among is None else column[among]
        inside = band_rows(few, *question.band)
        among = inside if among is None else among[inside]
    if question.distinct:
        ranking = _distinct(generation, layer, channel, question.pooling, column, among, k)
        return TopImages(layer, channel, ranking, candidates)
    few = column if among is None else column[among]
    rows = top_rows(few, k, lowest=question.order == "bottom")
    rows = rows if among is None else among[rows]
    return TopImages(layer, channel, Ranking(rows, column[rows].astype(np.float32)), candidates)


def _distinct(
    generation: Generation,
    layer: LayerRecord,
    channel: int,
    pooling: Pooling,
    column: Halves,
    among: Rows | None,
    k: int,
) -> Ranking:
    """Ranked by how far a score stands out, weighted by in how few channels the image does so.

    The weight is that of a term in Spärck Jones, "A statistical interpretation of term specificity
    and its application in retrieval", 1972, with channels for documents, and from 0 to 1.
    """
    rows = np.flatnonzero(generation.rows.valid) if among is None else among
    rows = rows[~np.isnan(column[rows])]
    statistics = generation.statistics(layer.name, pooling)
    mean, deviation = statistics.mean[channel], np.sqrt(statistics.variance[channel])
    if np.isnan(mean):
        known = column[~np.isnan(column)].astype(np.float64)
        mean, deviation = known.mean(), known.std()
    distance = column[rows].astype(np.float64) - mean
    z = np.divide(distance, deviation, out=np.zeros_like(distance), where=deviation > 0)
    mine = generation.top(layer.name, pooling, channel)[0][:HUB_RANKS]
    hubs = generation.hubs(layer.name, pooling)[rows] - np.isin(rows, mine)
    weight = np.log((1 + layer.channels) / (1 + hubs)) / np.log(1 + layer.channels)
    standing_out = np.where(z > 0, z * weight, z)
    best = largest(standing_out, min(k, len(rows)))
    distinct = Distinct(standing_out[best], hubs[best])
    return Ranking(rows[best], column[rows[best]].astype(np.float32), distinct)


def similar_images(
    generation: Generation, layer_name: str, row: int, k: int | None, *, exact: bool = False
) -> Near:
    """The k images nearest to image `row`; with `exact`, held against every other one."""
    layer = find_layer(generation, layer_name)
    check_valid(generation, row)
    k = check_k(k, generation.manifest.valid_rows - 1, "other valid image")
    vector = generation.image_scores(layer.name, "mean", row)
    return nearest_to(generation, layer.name, vector, k, exact=exact, leave_out=range(row, row + 1))


def nearest_to(
    generation: Generation,
    layer_name: str,
    vector: npt.NDArray[np.floating[Any]],
    k: int,
    *,
    exact: bool = False,
    leave_out: range = NONE,
) -> Near:
    """The k images nearest to mean-pooled activations (C,) that need not be in the index.

    By cosine, ties by lower row; without the rows of `leave_out`, and fewer than k where there are
    fewer. `exact` holds the vector against every image, which a flat index does as well.
    """
    layer = find_layer(generation, layer_name)
    vectors, query = generation.image_vectors(layer.name), vector.astype(np.float64)
    index = None if exact else generation.neighbours(layer.name)
    if index is None:
        rows, near = scan(vectors, query, k, leave_out, check_caller)
        return Near(Ranking(rows, near), 1.0, True)
    rows, near = nearest(index, vectors, query, k, leave_out)
    return Near(Ranking(rows, near), generation.manifest.recall_at_10[layer.name], index.exact)


def check_rows(generation: Generation, rows: Sequence[int], *, pictures: bool) -> Sequence[int]:
    """`rows` if all are in the row list and not too many, with their pictures or without."""
    if not rows:
        raise InvalidArgumentError("rows is empty; name at least one row.")
    most = MAX_IMAGES if pictures else MAX_NAMES
    if len(rows) > most:
        hint = f", or {MAX_NAMES} without_pictures" if pictures else ""
        raise InvalidArgumentError(
            f"rows has {len(rows)} entries; ask for at most {most} at a time{hint}."
        )
    for row in rows:
        check_row(generation, row, "rows")
    return rows
