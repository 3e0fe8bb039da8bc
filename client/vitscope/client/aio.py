"""The asynchronous client: the methods of `Client`, to be awaited."""

import os
from collections.abc import AsyncIterator, Collection, Sequence
from typing import SupportsIndex

from vitscope.client import convert, convert_maps, fields, requests, scores
from vitscope.client.aio_asking import AsyncAsking
from vitscope.client.filters import ImageFilter
from vitscope.client.results import (
    AnalyzedImage,
    ChangedChannels,
    ChangedImages,
    ChannelBoxScores,
    ChannelStatistics,
    Directions,
    Image,
    Index,
    PatchMap,
    PatchMaps,
    ScoreBlock,
    Scores,
    SimilarChannels,
    SimilarImages,
    SimilarPatches,
    TopChannels,
    TopImages,
    TopImagesAlong,
    TopImagesByBox,
    TopPatches,
)
from vitscope.v1 import query_pb2


class AsyncClient(AsyncAsking):
    """A connection to a vitscope server for one event loop; many questions at a time.

    async with AsyncClient("127.0.0.1:50051") as client:
        tops = await asyncio.gather(*(client.top_images("blocks.5.mlp", c) for c in range(9)))

    Arguments, results and errors are those of `Client`. What `Client` iterates over is to be
    iterated over with `async for`; a call that is cancelled ends on the server too.
    """

    async def indexes(self) -> list[Index]:
        """As `Client.indexes`."""
        reply = await self._ask((await self._stub()).ListIndexes, query_pb2.ListIndexesRequest())
        return [convert.index(index) for index in reply.indexes]

    async def index(self, name: str = "") -> Index:
        """As `Client.index`."""
        request = requests.index_request(name)
        reply = await self._ask((await self._stub()).GetIndex, request)
        return convert.index(reply.index)

    async def top_images(
        self,
        layer: str,
        channel: SupportsIndex,
        *,
        pooling: str = "mean",
        k: SupportsIndex | None = None,
        maps: bool = False,
        where: ImageFilter | None = None,
        order: str = "top",
        band: tuple[float, float] | None = None,
        distinct: bool = False,
        index: str = "",
    ) -> TopImages:
        """As `Client.top_images`."""
        ranked = requests.Ranked(pooling, k, maps, where, order, band, distinct)
        request = requests.top_images_request(index, layer, channel, ranked)
        reply = await self._ask((await self._stub()).TopImages, request)
        return self._with_source(request, convert.top_images(reply, layer, channel))

    def top_images_of_channels(
        self,
        layer: str,
        channels: Collection[SupportsIndex] | None = None,
        *,
        pooling: str = "mean",
        k: SupportsIndex | None = None,
        maps: bool = False,
        where: ImageFilter | None = None,
        order: str = "top",
        band: tuple[float, float] | None = None,
        distinct: bool = False,
        index: str = "",
    ) -> AsyncIterator[TopImages]:
        """As `Client.top_images_of_channels`."""
        ranked = requests.Ranked(pooling, k, maps, where, order, band, distinct)
        request = requests.top_images_of_channels_request(index, layer, channels, ranked)
        return self._top_images_of_channels(request, layer, channels)

    async def _top_images_of_channels(
        self,
        request: query_pb2.TopImagesOfChannelsRequest,
        layer: str,
        channels: Collection[SupportsIndex] | None,
    ) -> AsyncIterator[TopImages]:
        checked = convert.TopImagesInOrder(layer, channels)
        async for reply in self._each((await self._stub()).TopImagesOfChannels, request):
            yield self._with_source(request, checked.take(reply))
        checked.end()

    async def channel_statistics(
        self,
        layer: str,
        channels: Collection[SupportsIndex] | None = None,
        *,
        pooling: str = "mean",
        index: str = "",
    ) -> ChannelStatistics:
        """As `Client.channel_statistics`."""
        request = requests.channel_statistics_request(index, layer, channels, pooling)
        reply = await self._ask((await self._stub()).GetChannelStatistics, request)
        return convert.channel_statistics(reply, layer)

    async def top_patches(
        self,
        layer: str,
        channel: SupportsIndex,
        *,
        k: SupportsIndex | None = None,
        where: ImageFilter | None = None,
        index: str = "",
    ) -> TopPatches:
        """As `Client.top_patches`."""
        request = requests.top_patches_request(index, layer, channel, k, where)
        reply = await self._ask((await self._stub()).TopPatches, request)
        return self._with_source(request, convert.top_patches(reply, layer, channel))

    async def top_channels(
        self,
        row: SupportsIndex,
        *,
        layers: Sequence[str] = (),
        pooling: str | None = None,
        patch: tuple[SupportsIndex, SupportsIndex] | None = None,
        rectangle: tuple[float, float, float, float] | None = None,
        box: SupportsIndex | None = None,
        percentiles: bool = False,
        k: SupportsIndex | None = None,
        index: str = "",
    ) -> TopChannels:
        """As `Client.top_channels`."""
        part = requests.Part(pooling, patch, rectangle, box)
        request = requests.top_channels_request(index, row, layers, part, percentiles, k)
        reply = await self._ask((await self._stub()).TopChannels, request)
        return convert.top_channels(reply, row)

    async def similar_channels(
        self,
        layer: str,
        channel: SupportsIndex,
        *,
        k: SupportsIndex | None = None,
        layers: Sequence[str] = (),
        index: str = "",
    ) -> SimilarChannels:
        """As `Client.similar_channels`."""
        request = requests.similar_channels_request(index, layer, channel, k, layers)
        reply = await self._ask((await self._stub()).SimilarChannels, request)
        return convert.similar_channels(reply, layer, channel)

    async def box_scores(
        self,
        layer: str,
        channels: Collection[SupportsIndex] | None = None,
        *,
        box_labels: Sequence[str] = (),
        where: ImageFilter | None = None,
        index: str = "",
    ) -> ChannelBoxScores:
        """As `Client.box_scores`."""
        request = requests.box_scores_request(index, layer, channels, box_labels, where)
        reply = await self._ask((await self._stub()).GetBoxScores, request)
        return convert.channel_box_scores(reply, layer)

    async def top_images_by_box(
        self,
        layer: str,
        channel: SupportsIndex,
        *,
        box_labels: Sequence[str] = (),
        where: ImageFilter | None = None,
        measure: str = "contrast",
        order: str = "top",
        k: SupportsIndex | None = None,
        index: str = "",
    ) -> TopImagesByBox:
        """As `Client.top_images_by_box`."""
        request = requests.top_images_by_box_request(
            index, layer, channel, box_labels, where, measure, order, k
        )
        reply = await self._ask((await self._stub()).TopImagesByBox, request)
        return self._with_source(request, convert.top_images_by_box(reply, layer, channel))

    async def patch_maps(
        self,
        selectors: Sequence[fields.Selector],
        *,
        encoding: str = "float16",
        index: str = "",
    ) -> list[PatchMaps]:
        """As `Client.patch_maps`."""
        request = requests.patch_maps_request(index, selectors, encoding)
        replies = [reply async for reply in self._each((await self._stub()).GetPatchMaps, request)]
        found = convert_maps.patch_maps_stream(replies, selectors)
        return [self._with_source(request, maps) for maps in found]

    async def patch_map_grid(
        self,
        layer: str,
        rows: Collection[SupportsIndex],
        channels: Collection[SupportsIndex],
        *,
        encoding: str = "float16",
        index: str = "",
    ) -> PatchMaps:
        """As `Client.patch_map_grid`."""
        request = requests.patch_map_grid_request(index, layer, rows, channels, encoding)
        asked = [(layer, channel, row) for row in rows for channel in channels]
        replies = [reply async for reply in self._each((await self._stub()).GetPatchMaps, request)]
        [maps] = convert_maps.patch_maps_stream(replies, asked)
        return self._with_source(request, maps)

    async def patch_map(
        self, layer: str, channel: SupportsIndex, row: SupportsIndex, *, index: str = ""
    ) -> PatchMap:
        """As `Client.patch_map`."""
        [maps] = await self.patch_maps([(layer, channel, row)], index=index)
        return convert_maps.one_map(maps)

    async def similar_images(
        self,
        layer: str,
        row: SupportsIndex,
        *,
        k: SupportsIndex | None = None,
        exact: bool = False,
        index: str = "",
    ) -> SimilarImages:
        """As `Client.similar_images`."""
        request = requests.similar_images_request(index, layer, row, k, exact)
        reply = await self._ask((await self._stub()).SimilarImages, request)
        return self._with_source(request, convert.similar_images(reply, layer, row))

    async def similar_patches(
        self,
        layer: str,
        row: SupportsIndex,
        patch: tuple[SupportsIndex, SupportsIndex],
        *,
        k: SupportsIndex | None = None,
        other_images: bool = False,
        exact: bool = False,
        index: str = "",
    ) -> SimilarPatches:
        """As `Client.similar_patches`."""
        request = requests.similar_patches_request(index, layer, row, patch, k, other_images, exact)
        reply = await self._ask((await self._stub()).SimilarPatches, request)
        return self._with_source(request, convert.similar_patches(reply, layer, row, patch))

    async def top_images_along(
        self,
        layer: str,
        direction: fields.Direction,
        *,
        measure: str = "projection",
        pooling: str = "mean",
        k: SupportsIndex | None = None,
        where: ImageFilter | None = None,
        index: str = "",
    ) -> TopImagesAlong:
        """As `Client.top_images_along`."""
        request = requests.top_images_along_request(
            index, layer, direction, measure, pooling, k, where
        )
        reply = await self._ask((await self._stub()).TopImagesAlongDirection, request)
        return self._with_source(request, convert.top_images_along(reply, layer, measure, pooling))

    async def directions(self, layer: str = "", *, index: str = "") -> Directions:
        """As `Client.directions`."""
        request = requests.directions_request(index, layer)
        reply = await self._ask((await self._stub()).ListDirections, request)
        return convert.directions(reply)

    async def compare_channels(
        self,
        index: str,
        other: str,
        layer: str,
        *,
        pooling: str = "mean",
        where: ImageFilter | None = None,
        measure: str = "effect",
        order: str = "top",
        k: SupportsIndex | None = None,
    ) -> ChangedChannels:
        """As `Client.compare_channels`."""
        request = requests.compare_channels_request(
            index, other, layer, pooling, where, measure, order, k
        )
        reply = await self._ask((await self._stub()).CompareChannels, request)
        return convert.changed_channels(reply, layer)

    async def compare_images(
        self,
        index: str,
        other: str,
        layer: str,
        channel: SupportsIndex,
        *,
        pooling: str = "mean",
        where: ImageFilter | None = None,
        order: str = "top",
        k: SupportsIndex | None = None,
    ) -> ChangedImages:
        """As `Client.compare_images`."""
        request = requests.compare_images_request(
            index, other, layer, channel, pooling, where, order, k
        )
        reply = await self._ask((await self._stub()).CompareImages, request)
        return self._with_source(request, convert.changed_images(reply, layer, channel))

    async def scores(
        self,
        layer: str,
        channels: Collection[SupportsIndex] | None = None,
        *,
        pooling: str = "mean",
        index: str = "",
    ) -> Scores:
        """As `Client.scores`."""
        blocks = self.scores_stream(layer, channels, pooling=pooling, index=index)
        return scores.joined_scores([block async for block in blocks])

    def scores_stream(
        self,
        layer: str,
        channels: Collection[SupportsIndex] | None = None,
        *,
        pooling: str = "mean",
        index: str = "",
    ) -> AsyncIterator[ScoreBlock]:
        """As `Client.scores_stream`."""
        request = requests.scores_request(index, layer, channels, pooling)
        return self._scores_stream(request, layer, channels)

    async def _scores_stream(
        self,
        request: query_pb2.GetScoresRequest,
        layer: str,
        channels: Collection[SupportsIndex] | None,
    ) -> AsyncIterator[ScoreBlock]:
        checked = scores.BlocksInOrder(layer, channels)
        async for reply in self._each((await self._stub()).GetScores, request):
            yield checked.take(reply)
        checked.end()

    async def analyze_image(
        self,
        picture: bytes | os.PathLike[str],
        *,
        layers: Sequence[str] = (),
        pooling: str = "mean",
        percentiles: bool = False,
        channels: SupportsIndex | None = None,
        neighbours: SupportsIndex | None = None,
        maps: Sequence[fields.ChannelSelector] = (),
        include_maps: bool = False,
        index: str = "",
    ) -> AnalyzedImage:
        """As `Client.analyze_image`."""
        request = requests.analyze_image_request(
            index,
            fields.picture_bytes(picture),
            layers,
            pooling,
            percentiles,
            channels,
            neighbours,
            maps,
            include_maps,
        )
        reply = await self._ask((await self._stub()).AnalyzeImage, request)
        return self._with_source(request, convert.analyzed_image(reply, maps, include_maps))

    async def images(
        self, rows: Sequence[SupportsIndex], *, pictures: bool = True, index: str = ""
    ) -> list[Image]:
        """As `Client.images`."""
        request = requests.images_request(index, rows, pictures)
        replies = [reply async for reply in self._each((await self._stub()).GetImages, request)]
        return convert_maps.images_stream(replies, rows)
