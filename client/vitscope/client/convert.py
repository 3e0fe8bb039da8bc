"""Protobuf on one side, results on the other: no other file knows both."""

import math
import operator
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import SupportsIndex

import numpy as np

from vitscope.client import results
from vitscope.client.errors import ServerError, UsageError
from vitscope.v1 import index_pb2, query_pb2

POOLINGS: dict[str, index_pb2.Pooling.ValueType] = {
    "mean": index_pb2.POOLING_MEAN,
    "max": index_pb2.POOLING_MAX,
    "cls": index_pb2.POOLING_CLS,
}
_POOLING_NAMES = {value: name for name, value in POOLINGS.items()}

_MOST = 1 << 12
"""More patches than this along a side are a mistake."""
_LARGEST = 64
"""So are patches that are larger than so many inputs."""

Selector = tuple[str, SupportsIndex, SupportsIndex]
"""(layer, channel, row)"""

# ---- arguments -> requests


def pooling_value(name: str) -> index_pb2.Pooling.ValueType:
    """The enum value of a pooling's name."""
    try:
        return POOLINGS[name]
    except KeyError:
        choices = ", ".join(POOLINGS)
        raise UsageError(f"Pooling {name!r} is not known; choose one of {choices}.") from None


def index_request(index: str) -> query_pb2.GetIndexRequest:
    return query_pb2.GetIndexRequest(index=_text("index", index))


def top_images_request(
    index: str,
    layer: str,
    channel: SupportsIndex,
    pooling: str,
    k: SupportsIndex | None,
    maps: bool,
) -> query_pb2.TopImagesRequest:
    return query_pb2.TopImagesRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        channel=_whole("channel", channel, bits=32),
        pooling=pooling_value(pooling),
        k=None if k is None else _whole("k", k, bits=32),
        include_maps=maps,
    )


def patch_maps_request(index: str, selectors: Iterable[Selector]) -> query_pb2.GetPatchMapsRequest:
    return query_pb2.GetPatchMapsRequest(
        index=_text("index", index),
        maps=[
            query_pb2.PatchMapSelector(
                layer=_text("layer", layer),
                channel=_whole("channel", channel, bits=32),
                row=_whole("row", row, bits=64),
            )
            for layer, channel, row in selectors
        ],
    )


def similar_images_request(
    index: str, layer: str, row: SupportsIndex, k: SupportsIndex | None
) -> query_pb2.SimilarImagesRequest:
    return query_pb2.SimilarImagesRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        row=_whole("row", row, bits=64),
        k=None if k is None else _whole("k", k, bits=32),
    )


def images_request(index: str, rows: Iterable[SupportsIndex]) -> query_pb2.GetImagesRequest:
    return query_pb2.GetImagesRequest(
        index=_text("index", index), rows=[_whole("row", row, bits=64) for row in rows]
    )


def _whole(name: str, value: SupportsIndex, *, bits: int) -> int:
    """`value` as an int that its field on the wire can carry; what it means is the server's."""
    number = operator.index(value)
    limit = 1 << (bits - 1)
    if not -limit <= number < limit:
        raise UsageError(f"{name} {number} is out of range: it does not fit in {bits} bits.")
    return number


def _text(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} {value!r} is not text that UTF-8 can carry.") from None
    return value


# ---- replies -> results


def pooling_name(value: index_pb2.Pooling.ValueType) -> str:
    """The name of an enum value, readable also where a newer server sends an unknown one."""
    return _POOLING_NAMES.get(value, f"unknown({value})")


def index(message: index_pb2.Index) -> results.Index:
    model = message.model
    return results.Index(
        name=message.name,
        generation=message.generation,
        model=results.Model(
            name=model.name,
            weights_sha256=model.weights_sha256,
            weights_source=model.weights_source,
            input_height=model.input_height,
            input_width=model.input_width,
            dtype=model.dtype,
        ),
        rows=message.rows,
        valid_rows=message.valid_rows,
        layers=tuple(layer(one, model) for one in message.layers),
    )


def layer(message: index_pb2.Layer, model: index_pb2.Model) -> results.Layer:
    """A layer of an index that was made with `model`."""
    return results.Layer(
        name=message.name,
        depth=message.depth,
        channels=message.channels,
        tokens=token_layout(message.tokens, model),
        poolings=tuple(map(pooling_name, message.poolings)),
        maps_per_channel=message.maps_per_channel,
    )


def token_layout(message: index_pb2.TokenLayout, model: index_pb2.Model) -> results.TokenLayout:
    """Where an older server does not tell, patches cover the model's input evenly."""
    told = message.cell_height or message.cell_width
    grid = query_pb2.PatchGrid(
        input_height=model.input_height,
        input_width=model.input_width,
        cell_height=message.cell_height if told else model.input_height / max(1, message.height),
        cell_width=message.cell_width if told else model.input_width / max(1, message.width),
        top=message.top,
        left=message.left,
    )
    _require_place(grid, message.height, message.width)
    return results.TokenLayout(
        prefix=tuple(message.prefix),
        height=message.height,
        width=message.width,
        cell_height=grid.cell_height,
        cell_width=grid.cell_width,
        top=grid.top,
        left=grid.left,
    )


def top_images(
    message: query_pb2.TopImagesResponse, layer: str, channel: SupportsIndex
) -> results.TopImages:
    """The reply joined with the question, which it does not repeat."""
    has_maps = message.HasField("maps")
    return results.TopImages(
        generation=message.generation,
        layer=layer,
        channel=operator.index(channel),
        pooling=pooling_name(message.pooling),
        images=tuple(map(scored_image, message.images)),
        maps=patch_maps(message.maps, message.generation) if has_maps else None,
    )


def similar_images(
    message: query_pb2.SimilarImagesResponse, layer: str, row: SupportsIndex
) -> results.SimilarImages:
    """The reply joined with the question, which it does not repeat."""
    return results.SimilarImages(
        generation=message.generation,
        layer=layer,
        row=operator.index(row),
        images=tuple(map(scored_image, message.images)),
        exact=message.exact,
        recall_at_10=message.recall_at_10,
    )


def scored_image(message: query_pb2.ScoredImage) -> results.ScoredImage:
    label = message.label if message.HasField("label") else None
    return results.ScoredImage(message.row, message.key, label, message.score)


def patch_maps(message: query_pb2.PatchMaps, generation: str) -> results.PatchMaps:
    count, height, width = len(message.rows), message.height, message.width
    consistent = (
        min(height, width) >= (1 if count else 0)
        and max(height, width) <= _MOST
        and len(message.channels) == count
        and len(message.values) == count * height * width * 2
    )
    if not consistent:
        raise ServerError(
            f"The server's reply is inconsistent: {count} rows, {len(message.channels)} channels "
            f"and {len(message.values)} bytes for maps of {height} x {width} patches."
        )
    values = np.frombuffer(message.values, "<f2").astype(np.float16, copy=False)
    return results.PatchMaps(
        generation=generation,
        layer=message.layer,
        rows=np.array(message.rows, np.int64),
        channels=np.array(message.channels, np.int32),
        values=values.reshape(count, height, width),
        grid=patch_grid(message.grid, height, width) if message.HasField("grid") else None,
    )


def patch_grid(message: query_pb2.PatchGrid, height: int, width: int) -> results.PatchGrid:
    """The place of a grid of so many patches from top to bottom and from left to right."""
    _require_place(message, height, width)
    return results.PatchGrid(
        input_height=message.input_height,
        input_width=message.input_width,
        cell_height=message.cell_height,
        cell_width=message.cell_width,
        top=message.top,
        left=message.left,
    )


def _require_place(grid: query_pb2.PatchGrid, height: int, width: int) -> None:
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
    _require_asked("maps", got, asked)
    return joined


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
    )


def images_stream(
    messages: Iterable[query_pb2.GetImagesResponse], rows: Iterable[SupportsIndex]
) -> list[results.Image]:
    """The images asked for, in that order."""
    images = [image(one, message.generation) for message in messages for one in message.images]
    _require_asked("images", [one.row for one in images], list(map(operator.index, rows)))
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


def _require_asked(what: str, got: Sequence[object], asked: Sequence[object]) -> None:
    if len(got) != len(asked):
        raise ServerError(f"The server sent {len(got)} {what} where {len(asked)} were asked for.")
    if got != asked:
        raise ServerError(f"The server sent other {what} than those asked for.")
