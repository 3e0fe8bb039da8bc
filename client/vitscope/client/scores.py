"""From the stream of scores to results, and never from one that makes no sense."""

import operator
from collections.abc import Collection, Iterable
from typing import SupportsIndex

import numpy as np

from vitscope.client import convert, results
from vitscope.client.errors import ServerError
from vitscope.v1 import query_pb2


class BlocksInOrder:
    """The blocks of a stream, in the order of the channels asked for, each with as many rows."""

    def __init__(self, layer: str, channels: Collection[SupportsIndex] | None) -> None:
        self._layer = layer
        self._asked = None if channels is None else list(map(operator.index, channels))
        self._begun = self._reached = self._total = 0
        self._last = -1
        self._source: tuple[str, str] | None = None

    def take(self, message: query_pb2.GetScoresResponse) -> results.ScoreBlock:
        """The next block."""
        block = score_block(message, self._layer)
        count, length = block.values.shape
        if block.first_row == 0:
            # What came before has all its rows, and tells how many that are.
            right = self._total in (0, self._reached)
            self._total = self._total or self._reached
            wanted = list(range(self._begun, self._begun + count))
            if self._asked is not None:
                wanted = self._asked[self._begun :][:count]
            self._begun += count
        else:
            right, wanted = block.first_row == self._reached, [self._last]
        self._reached = block.first_row + length
        # Only one channel comes in parts.
        if count > 1:
            self._total = self._total or length
            right = right and self._reached == self._total
        else:
            right = right and self._reached <= (self._total or self._reached)
        self._source = self._source or (block.generation, block.pooling)
        same = self._source == (block.generation, block.pooling)
        if not right or not same or block.channels.tolist() != wanted:
            raise ServerError("The server sent other scores than those asked for.")
        self._last = wanted[-1]
        return block

    def end(self) -> None:
        """Raise `ServerError` where channels or rows are missing."""
        begun, asked = self._begun, self._asked
        if asked is not None and begun < len(asked):
            raise ServerError(
                f"The server sent {begun} channels where {len(asked)} were asked for."
            )
        if not begun or (self._total and self._reached != self._total):
            raise ServerError("The server sent fewer scores than those asked for.")


def score_block(message: query_pb2.GetScoresResponse, layer: str) -> results.ScoreBlock:
    count, rows = len(message.channels), message.rows
    if min(count, rows) < 1 or len(message.scores) != 2 * count * rows or message.first_row < 0:
        raise ServerError(
            f"The server's reply is inconsistent: {len(message.scores)} bytes for the scores of "
            f"{count} channels on {rows} rows from {message.first_row} on."
        )
    values = np.frombuffer(message.scores, "<f2").astype(np.float16, copy=False)
    return results.ScoreBlock(
        generation=message.generation,
        layer=layer,
        pooling=convert.pooling_name(message.pooling),
        channels=np.array(message.channels, np.int32),
        first_row=message.first_row,
        values=values.reshape(count, rows),
    )


def joined_scores(blocks: Iterable[results.ScoreBlock]) -> results.Scores:
    """All blocks of a stream, one at least, together."""
    parts = list(blocks)
    channels = np.concatenate([part.channels for part in parts if part.first_row == 0])
    rows = max(part.first_row + part.values.shape[1] for part in parts)
    values = np.empty((len(channels), rows), np.float16)
    begun = 0
    for part in parts:
        count, length = part.values.shape
        begun += count if part.first_row == 0 else 0
        values[begun - count : begun, part.first_row : part.first_row + length] = part.values
    return results.Scores(
        generation=parts[0].generation,
        layer=parts[0].layer,
        pooling=parts[0].pooling,
        channels=channels,
        values=values,
    )
