"""From the stream of scores to results, and never from one that makes no sense."""

import operator
from collections.abc import Collection, Iterable, Iterator
from typing import SupportsIndex

import numpy as np

from vitscope.client import convert, results
from vitscope.client.errors import ServerError
from vitscope.v1 import query_pb2


def score_blocks(
    messages: Iterable[query_pb2.GetScoresResponse],
    layer: str,
    channels: Collection[SupportsIndex] | None,
) -> Iterator[results.ScoreBlock]:
    """The blocks in the order of the channels asked for, each channel with as many rows."""
    asked = None if channels is None else list(map(operator.index, channels))
    begun = reached = total = 0
    last, source = -1, None
    for message in messages:
        block = score_block(message, layer)
        count, length = block.values.shape
        if block.first_row == 0:
            # What came before has all its rows, and tells how many that are.
            right = total in (0, reached)
            total = total or reached
            wanted = list(range(begun, begun + count)) if asked is None else asked[begun:][:count]
            begun += count
        else:
            right, wanted = block.first_row == reached, [last]
        reached = block.first_row + length
        # Only one channel comes in parts.
        total = total or (length if count > 1 else 0)
        right = right and (reached == total if count > 1 else reached <= (total or reached))
        source = source or (block.generation, block.pooling)
        same = source == (block.generation, block.pooling)
        if not right or not same or block.channels.tolist() != wanted:
            raise ServerError("The server sent other scores than those asked for.")
        last = wanted[-1]
        yield block
    if asked is not None and begun < len(asked):
        raise ServerError(f"The server sent {begun} channels where {len(asked)} were asked for.")
    if not begun or (total and reached != total):
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
