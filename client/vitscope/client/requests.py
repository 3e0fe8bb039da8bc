"""From arguments to requests, one function for each method of the service."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

from vitscope.client.errors import UsageError
from vitscope.client.fields import (
    BOX_MEASURES,
    CHANGES,
    DIRECTION_MEASURES,
    ChannelSelector,
    Direction,
    Selector,
    as_band,
    as_channels,
    as_count,
    as_direction,
    as_encoding,
    as_labels,
    as_layers,
    as_list,
    as_numbers,
    as_parts,
    as_place,
    as_rows,
    as_text,
    as_whole,
    image_filter,
    order_value,
    pooling_value,
)
from vitscope.client.filters import ImageFilter
from vitscope.v1 import query_pb2

MAX_PICTURE_BYTES = 3 << 20
"""More than this no server takes; a request stays clear of gRPC's limit of 4 MiB."""


def index_request(index: str) -> query_pb2.GetIndexRequest:
    return query_pb2.GetIndexRequest(index=as_text("index", index))


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
            "k": as_count(self.k),
            "include_maps": bool(self.maps),
            "filter": image_filter(self.where),
            "order": order_value(self.order),
            "band": None if self.band is None else as_band(self.band),
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
            return {"patch": as_place(self.patch)}
        if self.rectangle is not None:
            x0, y0, x1, y1 = as_numbers("rectangle", self.rectangle, "x0, y0, x1, y1")
            return {"rectangle": query_pb2.Rectangle(x0=x0, y0=y0, x1=x1, y1=y1)}
        if self.box is not None:
            return {"box": as_whole("box", self.box, bits=32)}
        return {"pooling": pooling_value("mean" if self.pooling is None else self.pooling)}


def top_images_request(
    index: str, layer: str, channel: SupportsIndex, ranked: Ranked
) -> query_pb2.TopImagesRequest:
    return query_pb2.TopImagesRequest(
        index=as_text("index", index),
        layer=as_text("layer", layer),
        channel=as_whole("channel", channel, bits=32),
        **ranked.fields(),
    )


def top_images_of_channels_request(
    index: str, layer: str, channels: Iterable[SupportsIndex] | None, ranked: Ranked
) -> query_pb2.TopImagesOfChannelsRequest:
    return query_pb2.TopImagesOfChannelsRequest(
        index=as_text("index", index),
        layer=as_text("layer", layer),
        channels=as_channels(channels),
        **ranked.fields(),
    )


def channel_statistics_request(
    index: str, layer: str, channels: Iterable[SupportsIndex] | None, pooling: str
) -> query_pb2.GetChannelStatisticsRequest:
    return query_pb2.GetChannelStatisticsRequest(
        index=as_text("index", index),
        layer=as_text("layer", layer),
        pooling=pooling_value(pooling),
        channels=as_channels(channels),
    )


def top_patches_request(
    index: str,
    layer: str,
    channel: SupportsIndex,
    k: SupportsIndex | None,
    where: ImageFilter | None,
) -> query_pb2.TopPatchesRequest:
    return query_pb2.TopPatchesRequest(
        index=as_text("index", index),
        layer=as_text("layer", layer),
        channel=as_whole("channel", channel, bits=32),
        k=as_count(k),
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
        index=as_text("index", index),
        row=as_whole("row", row, bits=64),
        layers=as_layers(layers),
        measure=query_pb2.MEASURE_PERCENTILE if percentiles else query_pb2.MEASURE_VALUE,
        k=as_count(k),
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
        index=as_text("index", index),
        layer=as_text("layer", layer),
        channels=as_channels(channels),
        box_labels=as_labels("box_labels", box_labels),
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
        index=as_text("index", index),
        layer=as_text("layer", layer),
        channel=as_whole("channel", channel, bits=32),
        box_labels=as_labels("box_labels", box_labels),
        filter=image_filter(where),
        measure=BOX_MEASURES[measure],
        order=order_value(order),
        k=as_count(k),
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
        index=as_text("index", index),
        other=as_text("other", other),
        layer=as_text("layer", layer),
        pooling=pooling_value(pooling),
        filter=image_filter(where),
        measure=CHANGES[measure],
        order=order_value(order),
        k=as_count(k),
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
        index=as_text("index", index),
        other=as_text("other", other),
        layer=as_text("layer", layer),
        channel=as_whole("channel", channel, bits=32),
        pooling=pooling_value(pooling),
        filter=image_filter(where),
        order=order_value(order),
        k=as_count(k),
    )


def similar_channels_request(
    index: str,
    layer: str,
    channel: SupportsIndex,
    k: SupportsIndex | None,
    layers: Iterable[str],
) -> query_pb2.SimilarChannelsRequest:
    return query_pb2.SimilarChannelsRequest(
        index=as_text("index", index),
        layer=as_text("layer", layer),
        channel=as_whole("channel", channel, bits=32),
        k=as_count(k),
        layers=as_layers(layers),
    )


def patch_maps_request(
    index: str, selectors: Iterable[Selector], encoding: str = "float16"
) -> query_pb2.GetPatchMapsRequest:
    return query_pb2.GetPatchMapsRequest(
        index=as_text("index", index),
        maps=[
            query_pb2.PatchMapSelector(
                layer=as_text("layer", layer),
                channel=as_whole("channel", channel, bits=32),
                row=as_whole("row", row, bits=64),
            )
            for layer, channel, row in (
                as_parts("A patch map", each, "layer, channel, row")
                for each in as_list("selectors", selectors)
            )
        ],
        encoding=as_encoding(encoding),
    )


def patch_map_grid_request(
    index: str,
    layer: str,
    rows: Iterable[SupportsIndex],
    channels: Iterable[SupportsIndex],
    encoding: str,
) -> query_pb2.GetPatchMapsRequest:
    grid = query_pb2.PatchMapGrid(
        layer=as_text("layer", layer),
        rows=as_rows(rows),
        channels=[
            as_whole("channel", channel, bits=32) for channel in as_list("channels", channels)
        ],
    )
    return query_pb2.GetPatchMapsRequest(
        index=as_text("index", index), grids=[grid], encoding=as_encoding(encoding)
    )


def similar_images_request(
    index: str, layer: str, row: SupportsIndex, k: SupportsIndex | None, exact: bool = False
) -> query_pb2.SimilarImagesRequest:
    return query_pb2.SimilarImagesRequest(
        index=as_text("index", index),
        layer=as_text("layer", layer),
        row=as_whole("row", row, bits=64),
        k=as_count(k),
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
        index=as_text("index", index),
        layer=as_text("layer", layer),
        row=as_whole("row", row, bits=64),
        patch=as_place(patch),
        k=as_count(k),
        other_images=other_images,
        exact=exact,
    )


def directions_request(index: str, layer: str) -> query_pb2.ListDirectionsRequest:
    return query_pb2.ListDirectionsRequest(
        index=as_text("index", index), layer=as_text("layer", layer)
    )


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
        index=as_text("index", index),
        layer=as_text("layer", layer),
        direction=as_direction(direction),
        measure=DIRECTION_MEASURES[measure],
        pooling=pooling_value(pooling),
        k=as_count(k),
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
        index=as_text("index", index),
        picture=picture,
        layers=as_layers(layers),
        pooling=pooling_value(pooling),
        measure=query_pb2.MEASURE_PERCENTILE if percentiles else query_pb2.MEASURE_VALUE,
        channels=None if channels is None else as_whole("channels", channels, bits=32),
        neighbours=None if neighbours is None else as_whole("neighbours", neighbours, bits=32),
        maps=[
            query_pb2.ChannelSelector(
                layer=as_text("layer", layer), channel=as_whole("channel", channel, bits=32)
            )
            for layer, channel in (
                as_parts("A map", each, "layer, channel") for each in as_list("maps", maps)
            )
        ],
        include_maps=include_maps,
    )


def images_request(
    index: str, rows: Iterable[SupportsIndex], pictures: bool = True
) -> query_pb2.GetImagesRequest:
    return query_pb2.GetImagesRequest(
        index=as_text("index", index),
        rows=as_rows(rows),
        without_pictures=not pictures,
    )


def scores_request(
    index: str, layer: str, channels: Iterable[SupportsIndex] | None, pooling: str
) -> query_pb2.GetScoresRequest:
    return query_pb2.GetScoresRequest(
        index=as_text("index", index),
        layer=as_text("layer", layer),
        pooling=pooling_value(pooling),
        channels=as_channels(channels),
    )
