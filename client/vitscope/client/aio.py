"""The asynchronous client: the methods of `Client`, to be awaited."""

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, SupportsIndex

import grpc

from vitscope.client import convert, requests, scores
from vitscope.client.answer import A, Source, with_source
from vitscope.client.client import Client
from vitscope.client.connection import OPTIONS, checked_address, checked_timeout, picture_bytes
from vitscope.client.errors import UsageError, rpc_errors
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
from vitscope.v1.service_pb2_grpc import ActivationServiceStub


class AsyncClient:
    """A connection to a vitscope server for one event loop; many questions at a time.

    async with AsyncClient("127.0.0.1:50051") as client:
        tops = await asyncio.gather(*(client.top_images("blocks.5.mlp", c) for c in range(9)))

    Arguments, results and errors are those of `Client`. What `Client` iterates over is to be
    iterated over with `async for`; a call that is cancelled ends on the server too.
    """

    def __init__(self, address: str, *, timeout: float = 30.0) -> None:
        self._address = checked_address(address)
        self._timeout = checked_timeout(timeout)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError(
                "An AsyncClient belongs to an event loop; make it inside of a coroutine."
            ) from None
        self._channel = grpc.aio.insecure_channel(self._address, options=OPTIONS)
        self._stub = ActivationServiceStub(self._channel)

    async def close(self) -> None:
        """Let the connection go; calls under way are cancelled (`asyncio.CancelledError`)."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _with_source(self, request: Any, answer: A) -> A:
        """The answer, told where its pictures come from."""
        connect = partial(Client, self._address, timeout=self._timeout)
        other = getattr(request, "other", "")
        return with_source(answer, Source(connect, request.index, other))

    async def indexes(self) -> list[Index]:
        """As `Client.indexes`."""
        with rpc_errors(self._address):
            reply = await self._stub.ListIndexes(
                query_pb2.ListIndexesRequest(), timeout=self._timeout
            )
        return [convert.index(index) for index in reply.indexes]

    async def index(self, name: str = "") -> Index:
        """As `Client.index`."""
        request = requests.index_request(name)
        with rpc_errors(self._address):
            reply = await self._stub.GetIndex(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            reply = await self._stub.TopImages(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            replies = self._stub.TopImagesOfChannels(request, timeout=self._timeout)
            async for reply in replies:
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
        with rpc_errors(self._address):
            reply = await self._stub.GetChannelStatistics(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            reply = await self._stub.TopPatches(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            reply = await self._stub.TopChannels(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            reply = await self._stub.SimilarChannels(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            reply = await self._stub.GetBoxScores(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            reply = await self._stub.TopImagesByBox(request, timeout=self._timeout)
        return self._with_source(request, convert.top_images_by_box(reply, layer, channel))

    async def patch_maps(
        self,
        selectors: Sequence[requests.Selector],
        *,
        encoding: str = "float16",
        index: str = "",
    ) -> list[PatchMaps]:
        """As `Client.patch_maps`."""
        request = requests.patch_maps_request(index, selectors, encoding)
        with rpc_errors(self._address):
            call = self._stub.GetPatchMaps(request, timeout=self._timeout)
            replies = [reply async for reply in call]
        found = convert.patch_maps_stream(replies, selectors)
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
        with rpc_errors(self._address):
            call = self._stub.GetPatchMaps(request, timeout=self._timeout)
            replies = [reply async for reply in call]
        [maps] = convert.patch_maps_stream(replies, asked)
        return self._with_source(request, maps)

    async def patch_map(
        self, layer: str, channel: SupportsIndex, row: SupportsIndex, *, index: str = ""
    ) -> PatchMap:
        """As `Client.patch_map`."""
        [maps] = await self.patch_maps([(layer, channel, row)], index=index)
        return convert.one_map(maps)

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
        with rpc_errors(self._address):
            reply = await self._stub.SimilarImages(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            reply = await self._stub.SimilarPatches(request, timeout=self._timeout)
        return self._with_source(request, convert.similar_patches(reply, layer, row, patch))

    async def top_images_along(
        self,
        layer: str,
        direction: requests.Direction,
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
        with rpc_errors(self._address):
            reply = await self._stub.TopImagesAlongDirection(request, timeout=self._timeout)
        return self._with_source(request, convert.top_images_along(reply, layer, measure, pooling))

    async def directions(self, layer: str = "", *, index: str = "") -> Directions:
        """As `Client.directions`."""
        request = requests.directions_request(index, layer)
        with rpc_errors(self._address):
            reply = await self._stub.ListDirections(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            reply = await self._stub.CompareChannels(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            reply = await self._stub.CompareImages(request, timeout=self._timeout)
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
        with rpc_errors(self._address):
            replies = self._stub.GetScores(request, timeout=self._timeout)
            async for reply in replies:
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
        maps: Sequence[requests.ChannelSelector] = (),
        include_maps: bool = False,
        index: str = "",
    ) -> AnalyzedImage:
        """As `Client.analyze_image`."""
        request = requests.analyze_image_request(
            index,
            picture_bytes(picture),
            layers,
            pooling,
            percentiles,
            channels,
            neighbours,
            maps,
            include_maps,
        )
        with rpc_errors(self._address):
            reply = await self._stub.AnalyzeImage(request, timeout=self._timeout)
        return self._with_source(request, convert.analyzed_image(reply, maps, include_maps))

    async def images(
        self, rows: Sequence[SupportsIndex], *, pictures: bool = True, index: str = ""
    ) -> list[Image]:
        """As `Client.images`."""
        request = requests.images_request(index, rows, pictures)
        with rpc_errors(self._address):
            call = self._stub.GetImages(request, timeout=self._timeout)
            replies = [reply async for reply in call]
        return convert.images_stream(replies, rows)
