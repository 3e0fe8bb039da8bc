"""From replies to patch maps, grids and pictures, and never from a reply that makes no sense."""

import math
import operator
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, SupportsIndex

import numpy as np

from vitscope.client import entries, results
from vitscope.client.answer import source_of, with_source
from vitscope.client.errors import ServerError
from vitscope.client.fields import Selector
from vitscope.v1 import query_pb2

_MOST = 1 << 12
"""More patches than this along a side are a mistake."""
_LARGEST = 64
"""So are patches that are larger than so many inputs."""


def patch_maps(message: query_pb2.PatchMaps, generation: str) -> results.PatchMaps:
    count, height, width = len(message.rows), message.height, message.width
    small = message.encoding == query_pb2.MAP_ENCODING_UINT8
    consistent = (
        min(height, width) >= (1 if count else 0)
        and max(height, width) <= _MOST
        and len(message.channels) == count
        and len(message.values) == count * height * width * (1 if small else 2)
        and len(message.scale) == len(message.offset) == (count if small else 0)
        and message.encoding <= query_pb2.MAP_ENCODING_UINT8
    )
    if not consistent:
        raise ServerError(
            f"The server's reply is inconsistent: {count} rows, {len(message.channels)} channels "
            f"and {len(message.values)} bytes for maps of {height} x {width} patches."
        )
    scale = np.array(message.scale, np.float32) if small else None
    if scale is None:
        values = np.frombuffer(message.values, "<f2").astype(np.float16, copy=False)
        values = values.reshape(count, height, width)
    else:
        codes = np.frombuffer(message.values, np.uint8).reshape(count, height, width)
        offset = np.array(message.offset, np.float32)
        wide = offset[:, None, None] + scale[:, None, None] * codes
        values = wide.astype(np.float16)
    return results.PatchMaps(
        generation=generation,
        layer=message.layer,
        rows=np.array(message.rows, np.int64),
        channels=np.array(message.channels, np.int32),
        values=values,
        grid=patch_grid(message.grid, height, width) if message.HasField("grid") else None,
        scale=scale,
        recomputed=np.full(count, message.source == query_pb2.MAP_SOURCE_RECOMPUTED),
    )


def patch_grid(message: query_pb2.PatchGrid, height: int, width: int) -> entries.PatchGrid:
    """The place of a grid of so many patches from top to bottom and from left to right."""
    require_place(message, height, width)
    return entries.PatchGrid(
        input_height=message.input_height,
        input_width=message.input_width,
        cell_height=message.cell_height,
        cell_width=message.cell_width,
        top=message.top,
        left=message.left,
    )


def require_place(grid: query_pb2.PatchGrid, height: int, width: int) -> None:
    """Raise `ServerError` where the patches lie nowhere in the model's input."""
    rows = grid.input_height, grid.cell_height, grid.top, height
    columns = grid.input_width, grid.cell_width, grid.left, width
    for side, cell, start, count in (rows, columns):
        finite = math.isfinite(cell) and math.isfinite(start)
        # Patches neither too small nor too large to be of any model, and one in the input at least.
        fit = finite and 1 <= side <= cell * _MOST and cell <= side * _LARGEST
        if not fit or not -cell * count < start < side:
            raise ServerError(
                f"The server's reply is inconsistent: patches of {grid.cell_height:g} x "
                f"{grid.cell_width:g} pixels from {grid.top:g}, {grid.left:g} on do not lie in an "
                f"input of {grid.input_height} x {grid.input_width} pixels."
            )


def patch_maps_stream(
    messages: Iterable[query_pb2.GetPatchMapsResponse], selectors: Iterable[Selector]
) -> list[results.PatchMaps]:
    """The maps asked for, in that order; neighbours of one layer and grid become one result."""
    parts = [patch_maps(message.maps, message.generation) for message in messages]
    filled = [part for part in parts if len(part.rows)]
    joined = [
        _joined(list(group))
        for _, group in groupby(filled, lambda part: (part.layer, part.values.shape[1:], part.grid))
    ]
    got = [
        (maps.layer, channel, row)
        for maps in joined
        for channel, row in zip(maps.channels.tolist(), maps.rows.tolist(), strict=True)
    ]
    asked = [
        (layer, operator.index(channel), operator.index(row)) for layer, channel, row in selectors
    ]
    require_asked("maps", got, asked)
    return joined


def one_map(maps: results.PatchMaps) -> results.PatchMap:
    """The only one of these."""
    [row], [channel], [values] = maps.rows.tolist(), maps.channels.tolist(), maps.values
    recomputed = maps.recomputed is not None and bool(maps.recomputed[0])
    one = results.PatchMap(maps.generation, maps.layer, channel, row, values, maps.grid, recomputed)
    source = source_of(maps)
    return one if source is None else with_source(one, source)


def _joined(parts: Sequence[results.PatchMaps]) -> results.PatchMaps:
    if len(parts) == 1:
        return parts[0]
    return results.PatchMaps(
        generation=parts[0].generation,
        layer=parts[0].layer,
        rows=np.concatenate([part.rows for part in parts]),
        channels=np.concatenate([part.channels for part in parts]),
        values=np.concatenate([part.values for part in parts]),
        grid=parts[0].grid,
        scale=_joined_scale(parts),
        recomputed=_joined_recomputed(parts),
    )


def _joined_scale(
    parts: Sequence[results.PatchMaps],
) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    scales = [part.scale for part in parts if part.scale is not None]
    return np.concatenate(scales) if scales else None


def _joined_recomputed(
    parts: Sequence[results.PatchMaps],
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    flags = [part.recomputed for part in parts if part.recomputed is not None]
    return np.concatenate(flags)


def images_stream(
    messages: Iterable[query_pb2.GetImagesResponse], rows: Iterable[SupportsIndex]
) -> list[results.Image]:
    """The images asked for, in that order."""
    images = [image(one, message.generation) for message in messages for one in message.images]
    require_asked("images", [one.row for one in images], list(map(operator.index, rows)))
    return images


def image(message: query_pb2.Image, generation: str) -> results.Image:
    return results.Image(
        generation=generation,
        row=message.row,
        key=message.key,
        label=message.label if message.HasField("label") else None,
        valid=message.valid,
        invalid_reason=message.invalid_reason,
        jpeg=message.jpeg,
        width=message.width,
        height=message.height,
        view=_view(message) if message.HasField("view") else None,
    )


def _view(image: query_pb2.Image) -> tuple[float, float, float, float]:
    view = image.view
    corners = view.x0, view.y0, view.x1, view.y1
    whole = all(map(math.isfinite, corners)) and view.x0 < view.x1 and view.y0 < view.y1
    if not whole or min(image.width, image.height) < 1:
        raise ServerError(
            f"The server's reply is inconsistent: row {image.row} shows {corners} of a picture of "
            f"{image.width} x {image.height} pixels."
        )
    return corners


def require_asked(what: str, got: Sequence[object], asked: Sequence[object]) -> None:
    if len(got) != len(asked):
        raise ServerError(f"The server sent {len(got)} {what} where {len(asked)} were asked for.")
    if got != asked:
        raise ServerError(f"The server sent other {what} than those asked for.")
