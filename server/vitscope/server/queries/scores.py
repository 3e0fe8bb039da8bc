"""The scores of all images, for chosen channels or a whole layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitscope.server.going import check_caller
from vitscope.server.queries.checks import check_channels, check_pooling, find_layer
from vitscope.store.generation import Generation
from vitscope.store.layout import SCORE_CHANNELS, scores_name
from vitscope.store.manifest import LayerRecord, Pooling

# A reply of one message stays clear of gRPC's limit of 4 MiB.
_MESSAGE_BYTES = 3 << 19
# Read together: one chunk of eight channels over all of ImageNet takes 20 MiB.
_HELD_BYTES = 32 << 20

Halves = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Block:
    """Scores of channels on rows that follow each other."""

    channels: Sequence[int]
    """(C,)"""
    first_row: int
    values: Halves
    """(C, R); NaN on invalid rows."""


def scores(
    generation: Generation, layer_name: str, pooling: Pooling, channels: Sequence[int]
) -> Iterator[Block]:
    """The scores of channels, all where none is given, in the order asked for.

    Several whole channels to a block, or parts of one that follow each other. What is wrong with
    the question is raised at once.
    """
    layer = find_layer(generation, layer_name)
    check_pooling(layer, pooling)
    return _blocks(generation, layer, pooling, check_channels(layer, channels))


def _blocks(
    generation: Generation, layer: LayerRecord, pooling: Pooling, channels: Sequence[int]
) -> Iterator[Block]:
    rows, name = generation.manifest.rows, scores_name(pooling)
    # Channels that share a chunk are read together as long as they fit.
    together = max(1, _HELD_BYTES // (2 * rows))
    if together > SCORE_CHANNELS:
        together -= together % SCORE_CHANNELS
    # Of a channel that is too long even alone, whole chunks along the rows.
    unit = generation.manifest.unit_rows
    length = max(unit, _HELD_BYTES // 2 // unit * unit)
    for start in range(0, len(channels), together):
        some = channels[start : start + together]
        for first in range(0, rows, length):
            check_caller()
            part = slice(first, min(first + length, rows))
            yield from _cut(
                some, first, generation.read(layer.name, name, np.array(some, np.int64), part)
            )


def _cut(channels: Sequence[int], first_row: int, values: Halves) -> Iterator[Block]:
    """What was read, in blocks for a message each."""
    rows = values.shape[1]
    whole = max(1, _MESSAGE_BYTES // (2 * rows))
    length = min(rows, _MESSAGE_BYTES // 2)
    for start in range(0, len(channels), whole):
        for first in range(0, rows, length):
            part = values[start : start + whole, first : first + length]
            yield Block(channels[start : start + whole], first_row + first, part)
