"""From arguments to requests: what a field on the wire cannot carry is found here."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from vitscope.client.errors import UsageError
from vitscope.client.filters import ImageFilter
from vitscope.v1 import index_pb2, query_pb2

POOLINGS: dict[str, index_pb2.Pooling.ValueType] = {
    "mean": index_pb2.POOLING_MEAN,
    "max": index_pb2.POOLING_MAX,
    "cls": index_pb2.POOLING_CLS,
}
ORDERS = {"top": query_pb2.ORDER_TOP, "bottom": query_pb2.ORDER_BOTTOM}
BOX_MEASURES = {
    "contrast": query_pb2.BOX_MEASURE_CONTRAST,
    "inside": query_pb2.BOX_MEASURE_INSIDE,
    "auc": query_pb2.BOX_MEASURE_AUC,
}
ENCODINGS = {
    "float16": query_pb2.MAP_ENCODING_FLOAT16,
    "uint8": query_pb2.MAP_ENCODING_UINT8,
}

DIRECTION_MEASURES = {
    "projection": query_pb2.DIRECTION_MEASURE_PROJECTION,
    "cosine": query_pb2.DIRECTION_MEASURE_COSINE,
}

CHANGES = {
    "effect": query_pb2.CHANGE_MEASURE_EFFECT,
    "difference": query_pb2.CHANGE_MEASURE_DIFFERENCE,
    "correlation": query_pb2.CHANGE_MEASURE_CORRELATION,
}

Selector = tuple[str, SupportsIndex, SupportsIndex]
"""(layer, channel, row)"""
Direction = Mapping[int, float] | NDArray[Any] | str
"""Weights by channel, a weight for every channel (C,), or the name of one that the server has."""
ChannelSelector = tuple[str, SupportsIndex]
"""(layer, channel)"""
MAX_PICTURE_BYTES = 3 << 20
"""More than this no server takes; a request stays clear of gRPC's limit of 4 MiB."""


def pooling_value(name: str) -> index_pb2.Pooling.ValueType:
    """The enum value of a pooling's name."""
    try:
        return POOLINGS[name]
    except KeyError:
        choices = ", ".join(POOLINGS)
        raise UsageError(f"Pooling {name!r} is not known; choose one of {choices}.") from None


def order_value(name: str) -> query_pb2.Order.ValueType:
    """The enum value of an order's name."""
    if name not in ORDERS:
        raise UsageError(f"Order {name!r} is not known; choose top or bottom.")
    return ORDERS[name]


def index_request(index: str) -> query_pb2.GetIndexRequest:
    return query_pb2.GetIndexRequest(index=_text("index", index))


@dataclass(frozen=True, slots=True)
class Ranked:
    """How the images of a channel are ranked, and which of them."""

    pooling: str
    k: SupportsIndex | None
    maps: bool
    where: ImageFilter | None
    order: str
    band: tuple[float, float] | None
    distinct: bool

    def fields(self) -> dict[str, Any]:
        """The fields that both requests for top images have."""
        return {
            "pooling": pooling_value(self.pooling),
            "k": _count(self.k),
            "include_maps": self.maps,
            "filter": image_filter(self.where),
            "order": order_value(self.order),
            "band": None if self.band is None else _band(self.band),
            "distinct": self.distinct,
        }


@dataclass(frozen=True, slots=True)
class Part:
    """What of an image is asked about; one of them, or all of the image by its mean."""

    pooling: str | None = None
    patch: tuple[SupportsIndex, SupportsIndex] | None = None
    rectangle: tuple[float, float, float, float] | None = None
    box: SupportsIndex | None = None

    def field(self) -> dict[str, Any]:
        """The one field that says it."""
        given = [name for name in self.__slots__ if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"Only one of {' and '.join(given)} can be asked about at a time.")
        if self.patch is not None:
            return {"patch": _place(self.patch)}
        if self.rectangle is not None:
            x0, y0, x1, y1 = _numbers("rectangle", self.rectangle, "x0, y0, x1, y1")
            return {"rectangle": query_pb2.Rectangle(x0=x0, y0=y0, x1=x1, y1=y1)}
        if self.box is not None:
            return {"box": _whole("box", self.box, bits=32)}
        return {"pooling": pooling_value("mean" if self.pooling is None else self.pooling)}


def _place(patch: tuple[SupportsIndex, SupportsIndex]) -> query_pb2.PatchPlace:
    y, x = (_whole("patch", each, bits=32) for each in _parts("patch", patch, "y, x"))
    return query_pb2.PatchPlace(y=y, x=x)


def _band(band: tuple[float, float]) -> query_pb2.QuantileBand:
    low, high = _numbers("band", band, "low, high")
    return query_pb2.QuantileBand(low=low, high=high)


def image_filter(where: ImageFilter | None) -> query_pb2.ImageFilter | None:
    """None where all images take part."""
    if where is None:
        return None
    return query_pb2.ImageFilter(
        labels=[_text("label", label) for label in where.labels],
        rows=[_whole("row", row, bits=64) for row in (() if where.rows is None else where.rows)],
        has_box=where.has_box,
        box_labels=[_text("box label", label) for label in where.box_labels],
    )


def top_images_request(
    index: str, layer: str, channel: SupportsIndex, ranked: Ranked
) -> query_pb2.TopImagesRequest:
    return query_pb2.TopImagesRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        channel=_whole("channel", channel, bits=32),
        **ranked.fields(),
    )


def top_images_of_channels_request(
    index: str, layer: str, channels: Iterable[SupportsIndex] | None, ranked: Ranked
) -> query_pb2.TopImagesOfChannelsRequest:
    return query_pb2.TopImagesOfChannelsRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        channels=_channels(channels),
        **ranked.fields(),
    )


def channel_statistics_request(
    index: str, layer: str, channels: Iterable[SupportsIndex] | None, pooling: str
) -> query_pb2.GetChannelStatisticsRequest:
    return query_pb2.GetChannelStatisticsRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        pooling=pooling_value(pooling),
        channels=_channels(channels),
    )


def top_patches_request(
    index: str,
    layer: str,
    channel: SupportsIndex,
    k: SupportsIndex | None,
    where: ImageFilter | None,
) -> query_pb2.TopPatchesRequest:
    return query_pb2.TopPatchesRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        channel=_whole("channel", channel, bits=32),
        k=_count(k),
        filter=image_filter(where),
    )


def top_channels_request(
    index: str,
    row: SupportsIndex,
    layers: Iterable[str],
    part: Part,
    percentiles: bool,
    k: SupportsIndex | None,
) -> query_pb2.TopChannelsRequest:
    return query_pb2.TopChannelsRequest(
        index=_text("index", index),
        row=_whole("row", row, bits=64),
        layers=_layers(layers),
        measure=query_pb2.MEASURE_PERCENTILE if percentiles else query_pb2.MEASURE_VALUE,
        k=_count(k),
        **part.field(),
    )


def box_scores_request(
    index: str,
    layer: str,
    channels: Iterable[SupportsIndex] | None,
    box_labels: Iterable[str],
    where: ImageFilter | None,
) -> query_pb2.GetBoxScoresRequest:
    return query_pb2.GetBoxScoresRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        channels=_channels(channels),
        box_labels=_labels(box_labels),
        filter=image_filter(where),
    )


def top_images_by_box_request(
    index: str,
    layer: str,
    channel: SupportsIndex,
    box_labels: Iterable[str],
    where: ImageFilter | None,
    measure: str,
    order: str,
    k: SupportsIndex | None,
) -> query_pb2.TopImagesByBoxRequest:
    if measure not in BOX_MEASURES:
        known = ", ".join(BOX_MEASURES)
        raise UsageError(f"Measure {measure!r} is not known; choose one of {known}.")
    return query_pb2.TopImagesByBoxRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        channel=_whole("channel", channel, bits=32),
        box_labels=_labels(box_labels),
        filter=image_filter(where),
        measure=BOX_MEASURES[measure],
        order=order_value(order),
        k=_count(k),
    )


def compare_channels_request(
    index: str,
    other: str,
    layer: str,
    pooling: str,
    where: ImageFilter | None,
    measure: str,
    order: str,
    k: SupportsIndex | None,
) -> query_pb2.CompareChannelsRequest:
    if measure not in CHANGES:
        raise UsageError(f"Measure {measure!r} is not known; choose one of {', '.join(CHANGES)}.")
    return query_pb2.CompareChannelsRequest(
        index=_text("index", index),
        other=_text("other", other),
        layer=_text("layer", layer),
        pooling=pooling_value(pooling),
        filter=image_filter(where),
        measure=CHANGES[measure],
        order=order_value(order),
        k=_count(k),
    )


def compare_images_request(
    index: str,
    other: str,
    layer: str,
    channel: SupportsIndex,
    pooling: str,
    where: ImageFilter | None,
    order: str,
    k: SupportsIndex | None,
) -> query_pb2.CompareImagesRequest:
    return query_pb2.CompareImagesRequest(
        index=_text("index", index),
        other=_text("other", other),
        layer=_text("layer", layer),
        channel=_whole("channel", channel, bits=32),
        pooling=pooling_value(pooling),
        filter=image_filter(where),
        order=order_value(order),
        k=_count(k),
    )


def similar_channels_request(
    index: str,
    layer: str,
    channel: SupportsIndex,
    k: SupportsIndex | None,
    layers: Iterable[str],
) -> query_pb2.SimilarChannelsRequest:
    return query_pb2.SimilarChannelsRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        channel=_whole("channel", channel, bits=32),
        k=_count(k),
        layers=_layers(layers),
    )


def patch_maps_request(
    index: str, selectors: Iterable[Selector], encoding: str = "float16"
) -> query_pb2.GetPatchMapsRequest:
    return query_pb2.GetPatchMapsRequest(
        index=_text("index", index),
        maps=[
            query_pb2.PatchMapSelector(
                layer=_text("layer", layer),
                channel=_whole("channel", channel, bits=32),
                row=_whole("row", row, bits=64),
            )
            for layer, channel, row in (
                _parts("A patch map", each, "layer, channel, row") for each in selectors
            )
        ],
        encoding=_encoding(encoding),
    )


def patch_map_grid_request(
    index: str,
    layer: str,
    rows: Iterable[SupportsIndex],
    channels: Iterable[SupportsIndex],
    encoding: str,
) -> query_pb2.GetPatchMapsRequest:
    grid = query_pb2.PatchMapGrid(
        layer=_text("layer", layer),
        rows=[_whole("row", row, bits=64) for row in rows],
        channels=[_whole("channel", channel, bits=32) for channel in channels],
    )
    return query_pb2.GetPatchMapsRequest(
        index=_text("index", index), grids=[grid], encoding=_encoding(encoding)
    )


def _encoding(name: str) -> query_pb2.MapEncoding.ValueType:
    if name not in ENCODINGS:
        known = " or ".join(ENCODINGS)
        raise UsageError(f"Encoding {name!r} is not known; choose {known}.")
    return ENCODINGS[name]


def similar_images_request(
    index: str, layer: str, row: SupportsIndex, k: SupportsIndex | None, exact: bool = False
) -> query_pb2.SimilarImagesRequest:
    return query_pb2.SimilarImagesRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        row=_whole("row", row, bits=64),
        k=_count(k),
        exact=exact,
    )


def similar_patches_request(
    index: str,
    layer: str,
    row: SupportsIndex,
    patch: tuple[SupportsIndex, SupportsIndex],
    k: SupportsIndex | None,
    other_images: bool,
    exact: bool,
) -> query_pb2.SimilarPatchesRequest:
    return query_pb2.SimilarPatchesRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        row=_whole("row", row, bits=64),
        patch=_place(patch),
        k=_count(k),
        other_images=other_images,
        exact=exact,
    )


def directions_request(index: str, layer: str) -> query_pb2.ListDirectionsRequest:
    return query_pb2.ListDirectionsRequest(index=_text("index", index), layer=_text("layer", layer))


def _direction(direction: Direction) -> query_pb2.Direction:
    """The direction as a request carries it: weights as float32."""
    if isinstance(direction, str):
        return query_pb2.Direction(name=_text("direction", direction))
    if isinstance(direction, Mapping):
        weights = query_pb2.ChannelWeights(
            channels=[_whole("channel", channel, bits=32) for channel in direction],
            weights=_floats(list(direction.values())).tolist(),
        )
        return query_pb2.Direction(weights=weights)
    vector = _floats(direction)
    if vector.ndim != 1:
        raise UsageError(
            f"A direction has one axis, the layer's channels; this one has {vector.ndim}."
        )
    return query_pb2.Direction(vector=vector.astype("<f4").tobytes())


def _floats(weights: Any) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            return np.asarray(weights, np.float32)
    except (TypeError, ValueError):
        raise UsageError("The weights of a direction are numbers.") from None


def top_images_along_request(
    index: str,
    layer: str,
    direction: Direction,
    measure: str,
    pooling: str,
    k: SupportsIndex | None,
    where: ImageFilter | None,
) -> query_pb2.TopImagesAlongDirectionRequest:
    if measure not in DIRECTION_MEASURES:
        raise UsageError(
            f"Measure {measure!r} is not known; choose {' or '.join(DIRECTION_MEASURES)}."
        )
    return query_pb2.TopImagesAlongDirectionRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        direction=_direction(direction),
        measure=DIRECTION_MEASURES[measure],
        pooling=pooling_value(pooling),
        k=_count(k),
        filter=image_filter(where),
    )


def analyze_image_request(
    index: str,
    picture: bytes,
    layers: Iterable[str],
    pooling: str,
    percentiles: bool,
    channels: SupportsIndex | None,
    neighbours: SupportsIndex | None,
    maps: Iterable[ChannelSelector],
    include_maps: bool,
) -> query_pb2.AnalyzeImageRequest:
    if len(picture) > MAX_PICTURE_BYTES:
        raise UsageError(
            f"picture has {len(picture):,} bytes; at most {MAX_PICTURE_BYTES:,} can be sent: make "
            "it smaller, or store it as a JPEG."
        )
    return query_pb2.AnalyzeImageRequest(
        index=_text("index", index),
        picture=picture,
        layers=_layers(layers),
        pooling=pooling_value(pooling),
        measure=query_pb2.MEASURE_PERCENTILE if percentiles else query_pb2.MEASURE_VALUE,
        channels=None if channels is None else _whole("channels", channels, bits=32),
        neighbours=None if neighbours is None else _whole("neighbours", neighbours, bits=32),
        maps=[
            query_pb2.ChannelSelector(
                layer=_text("layer", layer), channel=_whole("channel", channel, bits=32)
            )
            for layer, channel in maps
        ],
        include_maps=include_maps,
    )


def images_request(
    index: str, rows: Iterable[SupportsIndex], pictures: bool = True
) -> query_pb2.GetImagesRequest:
    return query_pb2.GetImagesRequest(
        index=_text("index", index),
        rows=[_whole("row", row, bits=64) for row in rows],
        without_pictures=not pictures,
    )


def scores_request(
    index: str, layer: str, channels: Iterable[SupportsIndex] | None, pooling: str
) -> query_pb2.GetScoresRequest:
    return query_pb2.GetScoresRequest(
        index=_text("index", index),
        layer=_text("layer", layer),
        pooling=pooling_value(pooling),
        channels=_channels(channels),
    )


def _count(k: SupportsIndex | None) -> int | None:
    return None if k is None else _whole("k", k, bits=32)


def _labels(labels: Iterable[str]) -> list[str]:
    if isinstance(labels, str):
        raise UsageError(f"box_labels is a list of labels, not a single text; write [{labels!r}].")
    return [_text("box label", label) for label in labels]


def _layers(layers: Iterable[str]) -> list[str]:
    if isinstance(layers, str):
        raise UsageError(f"layers is a list of names, not a single text; write [{layers!r}].")
    return [_text("layer", layer) for layer in layers]


def _channels(channels: Iterable[SupportsIndex] | None) -> list[int]:
    """None at all for all channels of the layer."""
    if channels is None:
        return []
    found = [_whole("channel", channel, bits=32) for channel in channels]
    if not found:
        raise UsageError("channels is empty; name at least one, or leave it out for all.")
    return found


def _whole(name: str, value: SupportsIndex, *, bits: int) -> int:
    """`value` as an int that its field on the wire can carry; what it means is the server's."""
    number = operator.index(value)
    limit = 1 << (bits - 1)
    if not -limit <= number < limit:
        raise UsageError(f"{name} {number} is out of range: it does not fit in {bits} bits.")
    return number


def _parts(name: str, value: Any, names: str) -> tuple[Any, ...]:
    """The parts of a tuple that has one for each of `names`."""
    found = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if len(found) != names.count(",") + 1:
        raise UsageError(f"{name} {value!r} cannot be; write it as ({names}).")
    return found


def _numbers(name: str, value: Any, names: str) -> list[float]:
    """Likewise, of numbers."""
    try:
        return [float(each) for each in _parts(name, value, names)]
    except (TypeError, ValueError):
        raise UsageError(f"{name} {value!r} cannot be; ({names}) are numbers.") from None


def _text(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} {value!r} is not text that UTF-8 can carry.") from None
    return value
