"""Patch maps of chosen images and channels, and those kept beside ranked images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitscope.server.errors import InvalidArgumentError, NotKeptHereError
from vitscope.server.going import check_caller
from vitscope.server.queries.checks import check_channel, check_valid, find_layer
from vitscope.server.queries.model import LiveModel
from vitscope.server.queries.recompute import Recomputed
from vitscope.store.generation import Generation
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.store.text import counted

MAX_MAPS = 4_096
# A reply of one message stays clear of gRPC's limit of 4 MiB.
MAX_MAP_BYTES = 3 << 20
_GRID_FIELDS = ("grids.layer", "grids.channels", "grids.rows")

Rows = npt.NDArray[np.int64]
Halves = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Maps:
    """Patch maps of one layer."""

    layer: str
    rows: Sequence[int]
    """(M,)"""
    channels: Sequence[int]
    """(M,)"""
    values: Halves
    """(M, H, W)"""
    recomputed: bool = False
    """Whether they come from the live model instead of the index."""


@dataclass(frozen=True, slots=True)
class Selector:
    """One patch map: a channel of a layer on an image."""

    layer: str
    channel: int
    row: int
    fields: tuple[str, str, str] = ("maps.layer", "maps.channel", "maps.row")
    """Where the request has the three."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The maps of every row with every channel, row by row."""

    layer: str
    rows: Sequence[int]
    channels: Sequence[int]


@dataclass(frozen=True, slots=True)
class Bytes:
    """Maps with a byte a value: `offset + scale * code`, off by half of `scale` at most."""

    codes: npt.NDArray[np.uint8]
    """(M, H, W)"""
    scale: npt.NDArray[np.float32]
    """(M,)"""
    offset: npt.NDArray[np.float32]
    """(M,)"""


def as_bytes(maps: Maps) -> Bytes:
    """The maps, each between its least and its greatest value, which have to be finite."""
    wide = maps.values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(wide).all((1, 2)))
    if bad.size:
        raise NotKeptHereError(
            f"encoding: the map of row {maps.rows[bad[0]]} on channel {maps.channels[bad[0]]} of "
            f"{maps.layer} has values that are not finite, for which no byte can stand; ask for "
            "MAP_ENCODING_FLOAT16."
        )
    offset = wide.min((1, 2))
    scale = (wide.max((1, 2)) - offset) / np.float32(255)
    steps = np.where(scale > 0, scale, 1)[:, None, None]
    codes = np.rint((wide - offset[:, None, None]) / steps).clip(0, 255)
    return Bytes(codes.astype(np.uint8), scale, offset)


def maps_of_ranked(
    generation: Generation, layer: LayerRecord, channel: int, pooling: Pooling, rows: Rows
) -> Maps:
    """The maps that are kept of images `rows` (k,) ranked by a pooling, in their order."""
    kept, _ = generation.top(layer.name, pooling, channel)
    best = np.array_equal(kept[: len(rows)], rows)
    # Before any of them is read.
    count = len(rows) if best else len(kept_rows(generation, layer, channel, rows))
    _check_size(layer, len(rows), count)
    if best:
        # As most are asked for: the best ones, whose maps lie beside each other.
        places = np.arange(len(rows))
        values = generation.top_maps(layer.name, pooling, channel, slice(0, len(rows)))
    else:
        places, values = kept_maps(generation, layer, channel, rows)
    return Maps(layer.name, rows[places].tolist(), [channel] * len(places), values)


def _check_size(layer: LayerRecord, images: int, maps: int) -> None:
    most = MAX_MAP_BYTES // (layer.tokens.height * layer.tokens.width * 2)
    if maps > most:
        raise InvalidArgumentError(
            f"include_maps with k = {images} would make too large a reply; ask for at most "
            f"{counted(most, 'image')}, or for the maps with GetPatchMaps."
        )


def kept_rows(generation: Generation, layer: LayerRecord, channel: int, among: Rows) -> Rows:
    """Those of the valid rows `among` (M,) whose maps of a channel are kept.

    Ascending, or in their order where the layer keeps all.
    """
    if layer.dense:
        return among
    tops = [generation.top(layer.name, pooling, channel)[0] for pooling in layer.poolings]
    return np.intersect1d(among, np.concatenate(tops))


def kept_maps(
    generation: Generation, layer: LayerRecord, channel: int, rows: Rows
) -> tuple[Rows, Halves]:
    """Places (M,), ascending, in `rows` (k,) whose maps are kept, and the maps (M, H, W)."""
    grid = (layer.tokens.height, layer.tokens.width)
    if layer.dense:
        values = generation.activations(layer.name, rows, channel)[:, len(layer.tokens.prefix) :]
        return np.arange(len(rows)), values.reshape(-1, *grid)
    found = np.zeros(len(rows), np.bool_)
    values = np.empty((len(rows), *grid), np.float16)
    for pooling in layer.poolings:
        kept, _ = generation.top(layer.name, pooling, channel)
        if found.all() or not len(kept):
            continue
        order = np.argsort(kept)
        ranks = order[np.searchsorted(kept, rows, sorter=order).clip(max=len(kept) - 1)]
        new = (kept[ranks] == rows) & ~found
        values[new] = generation.top_maps(layer.name, pooling, channel, ranks[new])
        found |= new
    places = np.flatnonzero(found)
    return places, values[places]


def patch_maps(
    generation: Generation,
    selectors: Sequence[Selector],
    grids: Sequence[Grid] = (),
    live: LiveModel | None = None,
) -> Iterator[Maps]:
    """The maps asked for, one by one and then in grids, neighbours of one layer together.

    What is wrong with the request is raised at once. Maps that were not kept are computed by the
    live model on the way, where there is one that can read the pictures.
    """
    count = len(selectors) + sum(len(grid.rows) * len(grid.channels) for grid in grids)
    if not count:
        raise InvalidArgumentError("maps is empty; name at least one layer, channel and row.")
    if count > MAX_MAPS:
        what = f"maps has {count} entries" if not grids else f"maps and grids are {count} maps"
        raise InvalidArgumentError(f"{what}; ask for at most {MAX_MAPS} at a time.")
    selectors = [
        *selectors,
        *(
            Selector(grid.layer, channel, row, _GRID_FIELDS)
            for grid in grids
            for row in grid.rows
            for channel in grid.channels
        ),
    ]
    for selector in selectors:
        of_layer, of_channel, of_row = selector.fields
        layer = find_layer(generation, selector.layer, of_layer)
        check_channel(layer, selector.channel, of_channel)
        check_valid(generation, selector.row, of_row)
    found = _found(generation, selectors)
    lost = [each for each, held in zip(selectors, found, strict=True) if held is None]
    if lost and (live is None or not live.has_pictures):
        raise _not_kept(generation, lost[0])
    recomputed = None
    if lost and live is not None:
        wanted = [(each.layer, each.channel, each.row) for each in lost]
        fields = {each.row: each.fields[2] for each in lost}
        recomputed = Recomputed(generation, live, wanted, fields)
    return _grouped(generation, selectors, found, recomputed)


def _not_kept(generation: Generation, selector: Selector) -> NotKeptHereError:
    top_k = generation.layer(selector.layer).top_k
    return NotKeptHereError(
        f"maps: the map of row {selector.row} on channel {selector.channel} of {selector.layer} "
        f"was not kept; this index keeps those of the top {counted(top_k, 'image')} of each "
        "channel, and a server computes the others with --live and --data."
    )


def _grouped(
    generation: Generation,
    selectors: Sequence[Selector],
    found: Sequence[Halves | None],
    recomputed: Recomputed | None,
) -> Iterator[Maps]:
    """Maps that follow each other and share layer and source, and one forward of the live model."""
    kept = -1

    def source(place: int) -> tuple[str, int]:
        each = selectors[place]
        if found[place] is not None or recomputed is None:
            return each.layer, kept
        return each.layer, recomputed.batch(each.row)

    def value(place: int) -> Halves:
        held, each = found[place], selectors[place]
        if held is not None:
            return held
        assert recomputed is not None
        return recomputed.map((each.layer, each.channel, each.row))

    start = 0
    for stop in range(1, len(selectors) + 1):
        layer, batch = source(start)
        tokens = generation.layer(layer).tokens
        full = (stop - start + 1) * tokens.height * tokens.width * 2 > MAX_MAP_BYTES
        if stop < len(selectors) and source(stop) == (layer, batch) and not full:
            continue
        part = selectors[start:stop]
        yield Maps(
            layer,
            [each.row for each in part],
            [each.channel for each in part],
            np.stack([value(place) for place in range(start, stop)]),
            recomputed=batch != kept,
        )
        start = stop


def _found(generation: Generation, selectors: Sequence[Selector]) -> list[Halves | None]:
    """The map (H, W) of each that is kept; those of a channel are read together."""
    places: dict[tuple[str, int], list[int]] = {}
    for place, selector in enumerate(selectors):
        places.setdefault((selector.layer, selector.channel), []).append(place)
    found: dict[int, Halves] = {}
    for (name, channel), mine in places.items():
        check_caller()
        layer = generation.layer(name)
        rows = np.array([selectors[place].row for place in mine], np.int64)
        kept, values = kept_maps(generation, layer, channel, rows)
        found.update(zip([mine[place] for place in kept.tolist()], values, strict=True))
    return [found.get(place) for place in range(len(selectors))]
