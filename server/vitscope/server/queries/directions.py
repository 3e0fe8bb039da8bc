"""Images along a direction in a layer's activation space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vitscope.server.errors import InvalidArgumentError, NotFoundError, NotKeptHereError
from vitscope.server.going import check_caller
from vitscope.server.queries.checks import check_channel, check_k, check_pooling, find_layer
from vitscope.server.queries.filters import ALL, ImageFilter, select
from vitscope.server.queries.images import Ranking
from vitscope.store.directions import Directions, NamedDirections, UnusableDirectionError
from vitscope.store.errors import NotKeptError
from vitscope.store.generation import Generation
from vitscope.store.layout import row_scores_name, scores_name
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.store.neighbours import scan
from vitscope.store.ranking import largest

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Measure = Literal["projection", "cosine"]

_ROWS_AT_ONCE = 16_384
_CHANNELS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Weights:
    """A direction by its channels; those that are not named weigh nothing."""

    channels: Sequence[int]
    weights: Sequence[float]


@dataclass(frozen=True, slots=True)
class Vector:
    """A direction by all its weights."""

    data: bytes
    """Little-endian float32 (C,)."""


@dataclass(frozen=True, slots=True)
class Named:
    """A direction that lies beside the index."""

    name: str


Direction = Weights | Vector | Named


@dataclass(frozen=True, slots=True)
class Question:
    """How images are ranked along a direction, and which of them."""

    measure: Measure = "projection"
    pooling: Pooling = "mean"
    k: int | None = None
    asked: ImageFilter = ALL


class Along(NamedTuple):
    """Images along a direction."""

    ranking: Ranking
    candidates: int
    """Images that the filter let through."""


def top_images_along(
    generation: Generation, layer_name: str, direction: Direction | None, question: Question
) -> Along:
    """The k images that lie farthest along a direction; exact, ties by lower row.

    Measures are computed in float64 and ranked as the float32 that they are given as.
    """
    layer = find_layer(generation, layer_name)
    k = check_k(question.k, generation.manifest.valid_rows, "valid image")
    if question.measure == "cosine" and question.pooling != "mean":
        raise InvalidArgumentError(
            "pooling: a cosine is that of mean-pooled activations; leave the pooling out, or ask "
            "for DIRECTION_MEASURE_PROJECTION."
        )
    check_pooling(layer, question.pooling)
    weights = _weights(generation, layer, direction)
    among = select(generation, question.asked)
    rows = generation.valid_rows if among is None else among
    if question.measure == "projection":
        ranking = _projected(generation, layer, weights, question.pooling, rows, k)
    else:
        # The length of a direction does not matter, but its square has to be a number.
        unit = weights / np.abs(weights).max()
        # A direction is not like the images' own vectors, for which the recall of FAISS is known.
        vectors = generation.image_vectors(layer.name, among)
        ranking = Ranking(*scan(vectors, unit, k, going=check_caller))
    return Along(ranking, len(rows))


def named_directions(generation: Generation, layer_name: str) -> list[NamedDirections]:
    """What lies beside the index, of one layer or, without a name, of all."""
    layers = [find_layer(generation, layer_name)] if layer_name else generation.manifest.layers
    there = Directions(generation)
    return [named for layer in layers for named in there.named(layer)]


def _weights(generation: Generation, layer: LayerRecord, direction: Direction | None) -> Doubles:
    """The weight of every channel: (C,), finite and not all 0."""
    match direction:
        case Weights():
            weights = _of_channels(layer, direction)
        case Vector():
            weights = _of_bytes(layer, direction.data)
        case Named():
            weights = _of_name(generation, layer, direction.name)
        case _:
            raise InvalidArgumentError(
                "direction is not given; give weights of channels, a vector or a name."
            )
    if not np.isfinite(weights).all():
        raise InvalidArgumentError("direction has a weight that is not finite; leave it out.")
    if not weights.any():
        raise InvalidArgumentError("direction has no weight but 0; give at least one channel one.")
    return weights


def _of_channels(layer: LayerRecord, given: Weights) -> Doubles:
    if len(given.channels) != len(given.weights):
        raise InvalidArgumentError(
            f"direction names {len(given.channels)} channels and {len(given.weights)} weights; "
            "give each channel one."
        )
    for channel in given.channels:
        check_channel(layer, channel, "direction.weights.channels")
    if len(set(given.channels)) < len(given.channels):
        raise InvalidArgumentError("direction names a channel twice; name each once.")
    weights = np.zeros(layer.channels)
    weights[np.array(given.channels, np.int64)] = given.weights
    return weights


def _of_bytes(layer: LayerRecord, data: bytes) -> Doubles:
    if len(data) != 4 * layer.channels:
        raise InvalidArgumentError(
            f"direction has a vector of {len(data)} bytes; {layer.name} takes float32 for "
            f"{layer.channels} channels, which are {4 * layer.channels}."
        )
    return np.frombuffer(data, "<f4").astype(np.float64)


def _of_name(generation: Generation, layer: LayerRecord, name: str) -> Doubles:
    try:
        return Directions(generation).read(layer, name)
    except NotKeptError as error:
        raise NotFoundError(f"direction: {error}") from None
    except UnusableDirectionError as error:
        raise NotKeptHereError(f"direction: {error}") from None


def _projected(
    generation: Generation,
    layer: LayerRecord,
    weights: Doubles,
    pooling: Pooling,
    rows: Rows,
    k: int,
) -> Ranking:
    channels = np.flatnonzero(weights)
    total = np.zeros(generation.manifest.rows)
    with np.errstate(over="ignore", invalid="ignore"):
        if _by_channel(generation, layer, channels, rows):
            for part, some, block in _columns(generation, layer, pooling, channels):
                total[part] += weights[some] @ block.astype(np.float64)
        else:
            for some, scores in _images(generation, layer, pooling, rows):
                total[some] = scores.astype(np.float64) @ weights
        # Less 0 than it would be with a sign.
        values = (total[rows] + 0.0).astype(np.float32)
    if not np.isfinite(values).all():
        raise InvalidArgumentError(
            "direction has weights so large that a sum is beyond float32; scale them down."
        )
    best = largest(values, min(k, len(values)))
    return Ranking(rows[best], values[best])


def _by_channel(generation: Generation, layer: LayerRecord, channels: Rows, rows: Rows) -> bool:
    """Whether fewer scores are read channel by channel than image by image."""
    return len(channels) * generation.manifest.rows < layer.channels * len(rows)


def _columns(
    generation: Generation, layer: LayerRecord, pooling: Pooling, channels: Rows
) -> Iterator[tuple[slice, Rows, npt.NDArray[np.float16]]]:
    """Scores (M, R) of some channels (M,) on all images of a range, a block at a time."""
    for start in range(0, generation.manifest.rows, _ROWS_AT_ONCE):
        part = slice(start, min(start + _ROWS_AT_ONCE, generation.manifest.rows))
        for first in range(0, len(channels), _CHANNELS_AT_ONCE):
            check_caller()
            some = channels[first : first + _CHANNELS_AT_ONCE]
            yield part, some, generation.read(layer.name, scores_name(pooling), some, part)


def _images(
    generation: Generation, layer: LayerRecord, pooling: Pooling, rows: Rows
) -> Iterator[tuple[Rows, npt.NDArray[np.float16]]]:
    """Scores (R, C) of some images (R,) on all channels, a block at a time."""
    step = max(1, _ROWS_AT_ONCE * _CHANNELS_AT_ONCE // layer.channels)
    for start in range(0, len(rows), step):
        check_caller()
        some = rows[start : start + step]
        yield some, generation.read(layer.name, row_scores_name(pooling), some)
