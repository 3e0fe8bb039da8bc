"""The answers, as plain arrays read from one generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitscope.server.errors import InvalidArgumentError, NotFoundError, NotKeptHereError
from vitscope.store.errors import NotKeptError
from vitscope.store.generation import Generation
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.store.ranking import top_rows
from vitscope.store.text import counted

DEFAULT_K = 20
MAX_K = 10_000
MAX_MAPS = 4_096
MAX_IMAGES = 1_024
# A reply of one message stays clear of gRPC's limit of 4 MiB.
_MAX_MAP_BYTES = 3 << 20


@dataclass(frozen=True, slots=True)
class Ranking:
    """Images, best first."""

    rows: npt.NDArray[np.int64]
    """(k,)"""
    scores: npt.NDArray[np.float32]
    """(k,)"""


@dataclass(frozen=True, slots=True)
class Maps:
    """Patch maps of one layer."""

    layer: str
    rows: Sequence[int]
    """(M,)"""
    channels: Sequence[int]
    """(M,)"""
    values: npt.NDArray[np.float16]
    """(M, H, W)"""


@dataclass(frozen=True, slots=True)
class Selector:
    """One patch map: a channel of a layer on an image."""

    layer: str
    channel: int
    row: int


def top_images(
    generation: Generation, layer_name: str, channel: int, pooling: Pooling, k: int | None
) -> Ranking:
    """The k images on which a channel scores highest; exact, ties by lower row."""
    layer = find_layer(generation, layer_name)
    _check_channel(layer, channel)
    _check_pooling(layer, pooling)
    k = _check_k(k, generation.manifest.valid_rows, "valid image")
    if k <= layer.top_k:
        rows, scores = generation.top(layer.name, pooling, channel)
        return Ranking(rows[:k], scores[:k].astype(np.float32))
    column = generation.scores(layer.name, pooling, channel)
    rows = top_rows(column, k)
    return Ranking(rows, column[rows].astype(np.float32))


def top_maps(
    generation: Generation, layer_name: str, channel: int, pooling: Pooling, ranking: Ranking
) -> Maps:
    """The kept maps of the images that `top_images` gave, in the same order."""
    layer = find_layer(generation, layer_name)
    kept = min(layer.top_k, len(ranking.rows))
    cells = layer.tokens.height * layer.tokens.width
    if kept * cells * 2 > _MAX_MAP_BYTES:
        raise InvalidArgumentError(
            f"include_maps with k = {len(ranking.rows)} would make too large a reply; ask for at "
            f"most {counted(_MAX_MAP_BYTES // (cells * 2), 'image')}, or for the maps with "
            "GetPatchMaps."
        )
    values = generation.top_maps(layer.name, pooling, channel, slice(0, kept))
    rows = ranking.rows[:kept].tolist()
    return Maps(layer.name, rows, [channel] * kept, values)


def patch_maps(generation: Generation, selectors: Sequence[Selector]) -> list[Maps]:
    """The maps asked for, in order, neighbours of one layer together."""
    if not selectors:
        raise InvalidArgumentError("maps is empty; name at least one layer, channel and row.")
    if len(selectors) > MAX_MAPS:
        raise InvalidArgumentError(
            f"maps has {len(selectors)} entries; ask for at most {MAX_MAPS} at a time."
        )
    for selector in selectors:
        _check_channel(find_layer(generation, selector.layer), selector.channel)
        check_valid(generation, selector.row)
    found = [_patch_map(generation, selector) for selector in selectors]
    groups: list[Maps] = []
    start = 0
    for stop in range(1, len(selectors) + 1):
        size = (stop - start) * found[start].nbytes
        full = size + found[start].nbytes > _MAX_MAP_BYTES
        if stop == len(selectors) or selectors[stop].layer != selectors[start].layer or full:
            part = selectors[start:stop]
            groups.append(
                Maps(
                    part[0].layer,
                    [selector.row for selector in part],
                    [selector.channel for selector in part],
                    np.stack(found[start:stop]),
                )
            )
            start = stop
    return groups


def similar_images(
    generation: Generation, layer_name: str, row: int, k: int | None
) -> tuple[Ranking, float]:
    """The k images nearest to image `row`, and the search's recall at 10 against brute force."""
    layer = find_layer(generation, layer_name)
    check_valid(generation, row)
    k = _check_k(k, generation.manifest.valid_rows - 1, "other valid image")
    rows, similarities = generation.neighbours(layer.name).nearest(row, k)
    return Ranking(rows, similarities), generation.manifest.recall_at_10[layer.name]


def check_rows(generation: Generation, rows: Sequence[int]) -> Sequence[int]:
    """`rows` if all are in the row list and not too many."""
    if not rows:
        raise InvalidArgumentError("rows is empty; name at least one row.")
    if len(rows) > MAX_IMAGES:
        raise InvalidArgumentError(
            f"rows has {len(rows)} entries; ask for at most {MAX_IMAGES} at a time."
        )
    for row in rows:
        _check_row(generation, row)
    return rows


def find_layer(generation: Generation, name: str) -> LayerRecord:
    """The layer called `name`."""
    if not name:
        raise InvalidArgumentError("layer is empty; name one, such as blocks.0.mlp.")
    try:
        return generation.layer(name)
    except NotKeptError as error:
        raise NotFoundError(f"layer: {error}") from None


def find_index(generations: Mapping[str, Generation], name: str) -> Generation:
    """The index called `name`; an empty name means the only one."""
    if name in generations:
        return generations[name]
    if not name and len(generations) == 1:
        return next(iter(generations.values()))
    known = ", ".join(sorted(generations))
    if not name:
        raise InvalidArgumentError(f"index is not given, and there are several: {known}.")
    raise NotFoundError(f"index: there is no index {name[:80]!r}; this server holds: {known}.")


def _patch_map(generation: Generation, selector: Selector) -> npt.NDArray[np.float16]:
    layer = generation.layer(selector.layer)
    if layer.dense:
        tokens = generation.activations(layer.name, selector.row, selector.channel)
        patches = tokens[len(layer.tokens.prefix) :]
        return patches.reshape(layer.tokens.height, layer.tokens.width)
    for pooling in layer.poolings:
        rows, _ = generation.top(layer.name, pooling, selector.channel)
        ranks = np.flatnonzero(rows == selector.row)
        if len(ranks):
            return generation.top_maps(layer.name, pooling, selector.channel, ranks).squeeze(0)
    raise NotKeptHereError(
        f"maps: the map of row {selector.row} on channel {selector.channel} of {layer.name} was "
        f"not kept; this index keeps those of the top {counted(layer.top_k, 'image')} of each "
        "channel."
    )


def check_valid(generation: Generation, row: int) -> None:
    """Raise unless `row` is in the row list and holds a readable image."""
    _check_row(generation, row)
    if not generation.rows.valid[row]:
        raise NotKeptHereError(
            f"row: row {row} is an invalid image ({generation.rows.record(row).reason})."
        )


def _check_row(generation: Generation, row: int) -> None:
    rows = generation.manifest.rows
    if not 0 <= row < rows:
        raise NotFoundError(f"row: there is no row {row}; the index has rows 0 to {rows - 1}.")


def _check_channel(layer: LayerRecord, channel: int) -> None:
    if not 0 <= channel < layer.channels:
        raise NotFoundError(
            f"channel: {layer.name} has no channel {channel}; "
            f"it has channels 0 to {layer.channels - 1}."
        )


def _check_pooling(layer: LayerRecord, pooling: Pooling) -> None:
    if pooling not in layer.poolings:
        raise NotKeptHereError(
            f"pooling: {layer.name} has no {pooling} pooling; "
            f"it has {' and '.join(layer.poolings)}."
        )


def _check_k(k: int | None, most: int, what: str) -> int:
    most = min(most, MAX_K)
    if k is None:
        return min(DEFAULT_K, most)
    if k < 1:
        raise InvalidArgumentError(f"k is {k}; it must be at least 1.")
    if k > most:
        there = f"there {'is' if most == 1 else 'are'} {counted(most, what)}"
        reason = there if most < MAX_K else f"at most {MAX_K} are returned"
        raise InvalidArgumentError(f"k is {k}, but {reason}.")
    return k
