"""The synchronous client: one method per question, results in plain Python and numpy."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeVar

from google.protobuf.message import Message

from vitscope.client import convert, requests, scores
from vitscope.client.answer import A, Source, with_source
from vitscope.client.connection import (
    RETRIES,
    Connection,
    Retries,
    Tls,
    picture_bytes,
    with_request_id,
)
from vitscope.client.errors import rpc_errors
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

_T = TypeVar("_T")


class Client:
    """A connection to a vitscope server; safe to share between threads.

    with Client("127.0.0.1:50051") as client:
        top = client.top_images("blocks.5.mlp", 7, k=9, maps=True)
        for image in top.images:
            print(image.row, image.label, image.score)

    `address` is HOST:PORT, or several of replicas, which take calls in turn as long as they are
    healthy. `timeout` is the longest any one call may take, in seconds, with all its `retries`.
    `tls` says how the server is trusted, `token` who asks. Nothing is sent before the first
    question. Every method raises a `VitscopeError`: `UnavailableError` where nothing answers,
    `DeadlineError` after `timeout`, `OverloadedError` where a server has no room,
    `InvalidRequestError` or `NotFoundError` for a question with no answer.

    In every method an empty `index` means the server's only index.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        timeout: float = 30.0,
        tls: Tls | None = None,
        token: str | None = None,
        retries: Retries = RETRIES,
    ) -> None:
        connection = Connection(address, timeout, tls, token, retries)
        channel = connection.channel()
        self._name = connection.name
        self._told = connection.told
        self._stub = ActivationServiceStub(channel)
        self._close = channel.close
        self._another: Callable[[], Client] = partial(
            Client, address, timeout=timeout, tls=tls, token=token, retries=retries
        )

    def _ask(self, method: Callable[..., _T], request: Message) -> _T:
        with rpc_errors(self._name):
            return method(request, **with_request_id(self._told))

    def _each(self, method: Callable[..., Iterator[_T]], request: Message) -> Iterator[_T]:
        with rpc_errors(self._name):
            yield from method(request, **with_request_id(self._told))

    def close(self) -> None:
        """Let the connection go; calls under way end with `CancelledError`."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _with_source(self, request: Any, answer: A) -> A:
        """The answer, told where its pictures come from."""
        other = getattr(request, "other", "")
        return with_source(answer, Source(self._another, request.index, other))

    def indexes(self) -> list[Index]:
        """The indexes that the server holds, without their layers."""
        reply = self._ask(self._stub.ListIndexes, query_pb2.ListIndexesRequest())
        return [convert.index(index) for index in reply.indexes]

    def index(self, name: str = "") -> Index:
        """One index with its layers.

        for layer in client.index().layers:
            print(layer.name, layer.channels)
        """
        request = requests.index_request(name)
        reply = self._ask(self._stub.GetIndex, request)
        return convert.index(reply.index)

    def top_images(
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
        """The `k` images on which a channel scores highest, exactly.

        top = client.top_images("blocks.5.mlp", 7, pooling="max", k=9)
        rows = [image.row for image in top.images]
        middle = client.top_images("blocks.5.mlp", 7, band=(0.45, 0.55))
        stars = client.top_images("blocks.5.mlp", 7, where=ImageFilter(labels=["red-plain-star"]))

        `pooling` is 'mean', 'max' or 'cls'. Without `k` the server gives 20 images, or all if
        there are fewer. With `maps` the stored patch maps of these images come along; an index
        keeps those of the first `Layer.maps_per_channel`.

        Only images that `where` lets through take part. `order` is 'top' or 'bottom'. `band` leaves
        those whose score lies between two quantiles, given as shares from 0 to 1. `distinct` ranks
        by `Distinctness.score`, so that an image that tops very many channels gives way.
        """
        ranked = requests.Ranked(pooling, k, maps, where, order, band, distinct)
        request = requests.top_images_request(index, layer, channel, ranked)
        reply = self._ask(self._stub.TopImages, request)
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
    ) -> Iterator[TopImages]:
        """`top_images` of several channels in one call, or of all of a layer, as they come.

        for top in client.top_images_of_channels("blocks.5.mlp", k=9):
            print(top.channel, [image.row for image in top.images])

        The client's `timeout` is that of the whole sweep, with the time spent inside of the loop.
        """
        ranked = requests.Ranked(pooling, k, maps, where, order, band, distinct)
        request = requests.top_images_of_channels_request(index, layer, channels, ranked)
        return self._top_images_of_channels(request, layer, channels)

    def _top_images_of_channels(
        self,
        request: query_pb2.TopImagesOfChannelsRequest,
        layer: str,
        channels: Collection[SupportsIndex] | None,
    ) -> Iterator[TopImages]:
        checked = convert.TopImagesInOrder(layer, channels)
        for reply in self._each(self._stub.TopImagesOfChannels, request):
            yield self._with_source(request, checked.take(reply))
        checked.end()

    def channel_statistics(
        self,
        layer: str,
        channels: Collection[SupportsIndex] | None = None,
        *,
        pooling: str = "mean",
        index: str = "",
    ) -> ChannelStatistics:
        """Moments and quantiles of channels' scores over all images; of all channels without any.

        statistics = client.channel_statistics("blocks.5.mlp", pooling="max")
        dead = statistics.channels[statistics.active == 0]
        """
        request = requests.channel_statistics_request(index, layer, channels, pooling)
        reply = self._ask(self._stub.GetChannelStatistics, request)
        return convert.channel_statistics(reply, layer)

    def top_patches(
        self,
        layer: str,
        channel: SupportsIndex,
        *,
        k: SupportsIndex | None = None,
        where: ImageFilter | None = None,
        index: str = "",
    ) -> TopPatches:
        """The `k` patches of all images on which a channel is strongest, exactly.

        for patch in client.top_patches("blocks.5.mlp", 7, k=50).patches:
            print(patch.row, patch.source)  # x0, y0, x1, y1 in pixels of the source picture

        Raises `NotKeptError` where they may lie in images whose maps the index did not keep: for
        more than `Layer.maps_per_channel`, and with a filter.
        """
        request = requests.top_patches_request(index, layer, channel, k, where)
        reply = self._ask(self._stub.TopPatches, request)
        return self._with_source(request, convert.top_patches(reply, layer, channel))

    def top_channels(
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
        """The `k` channels that are strongest on image `row`, of some layers or all, exactly.

        client.top_channels(12, percentiles=True)  # what is special about the image
        client.top_channels(12, layers=["blocks.5.mlp"], patch=(3, 4))
        client.top_channels(12, layers=["blocks.5.mlp"], box=0)  # inside its first box

        By `pooling` ('mean' where nothing is given); on a `patch` (y, x) of the layer's grid; on a
        `rectangle` (x0, y0, x1, y1) in pixels of the source picture, or a labelled `box` of the
        image: the mean inside minus that outside. With `percentiles` channels are ranked by the
        share of images that score lower, since some are strong on every image.

        Raises `NotKeptError` for a part of an image where the index keeps pooled scores only and
        the server has no live model.
        """
        part = requests.Part(pooling, patch, rectangle, box)
        request = requests.top_channels_request(index, row, layers, part, percentiles, k)
        reply = self._ask(self._stub.TopChannels, request)
        return convert.top_channels(reply, row)

    def similar_channels(
        self,
        layer: str,
        channel: SupportsIndex,
        *,
        k: SupportsIndex | None = None,
        layers: Sequence[str] = (),
        index: str = "",
    ) -> SimilarChannels:
        """The `k` channels whose mean-pooled scores correlate most with a channel's, exactly.

        near = client.similar_channels("blocks.5.mlp", 7, layers=["blocks.6.mlp"])

        Among those of its own layer unless `layers` names others.
        """
        request = requests.similar_channels_request(index, layer, channel, k, layers)
        reply = self._ask(self._stub.SimilarChannels, request)
        return convert.similar_channels(reply, layer, channel)

    def box_scores(
        self,
        layer: str,
        channels: Collection[SupportsIndex] | None = None,
        *,
        box_labels: Sequence[str] = (),
        where: ImageFilter | None = None,
        index: str = "",
    ) -> ChannelBoxScores:
        """How far channels look at labelled boxes, of all channels without any, exactly.

        scores = client.box_scores("blocks.11.mlp", box_labels=["person"])
        best = scores.channels[np.nanargmax(scores.auc)]

        Means over the images that have a box with one of the labels, and whose map is kept: of all
        with `--retain-all`, else of a channel's top images.
        """
        request = requests.box_scores_request(index, layer, channels, box_labels, where)
        reply = self._ask(self._stub.GetBoxScores, request)
        return convert.channel_box_scores(reply, layer)

    def top_images_by_box(
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
        """The `k` images on which a channel looks most at labelled boxes, exactly.

        past = client.top_images_by_box("blocks.11.mlp", 7, box_labels=["dog"], order="bottom")

        `order` 'bottom' gives those on which it looks past them. `measure` is 'contrast', 'inside'
        or 'auc'. Of the images whose map is kept, as in `box_scores`.
        """
        request = requests.top_images_by_box_request(
            index, layer, channel, box_labels, where, measure, order, k
        )
        reply = self._ask(self._stub.TopImagesByBox, request)
        return self._with_source(request, convert.top_images_by_box(reply, layer, channel))

    def patch_maps(
        self,
        selectors: Sequence[requests.Selector],
        *,
        encoding: str = "float16",
        index: str = "",
    ) -> list[PatchMaps]:
        """Many patch maps in one call, each asked for as (layer, channel, row).

        [maps] = client.patch_maps([("blocks.5.mlp", 7, row) for row in rows])
        maps.values[0]  # (H, W) of rows[0]

        They come in the order asked for; maps that follow each other and share layer and grid
        are one result. With `encoding` 'uint8' they take half of the bytes and are off by half of
        `PatchMaps.scale` at most, and by what float16 rounds. Raises `NotKeptError` for a map that
        the index did not keep, where the server has no live model.
        """
        request = requests.patch_maps_request(index, selectors, encoding)
        replies = list(self._each(self._stub.GetPatchMaps, request))
        found = convert.patch_maps_stream(replies, selectors)
        return [self._with_source(request, maps) for maps in found]

    def patch_map_grid(
        self,
        layer: str,
        rows: Collection[SupportsIndex],
        channels: Collection[SupportsIndex],
        *,
        encoding: str = "float16",
        index: str = "",
    ) -> PatchMaps:
        """The patch maps of every row with every channel, row by row.

        maps = client.patch_map_grid("blocks.5.mlp", rows=[3, 9], channels=[7, 8])
        maps.values.reshape(2, 2, *maps.values.shape[1:])  # by row, by channel

        Raises as `patch_maps` does.
        """
        request = requests.patch_map_grid_request(index, layer, rows, channels, encoding)
        asked = [(layer, channel, row) for row in rows for channel in channels]
        replies = list(self._each(self._stub.GetPatchMaps, request))
        [maps] = convert.patch_maps_stream(replies, asked)
        return self._with_source(request, maps)

    def patch_map(
        self, layer: str, channel: SupportsIndex, row: SupportsIndex, *, index: str = ""
    ) -> PatchMap:
        """The patch map of one channel on one image.

        heat = client.patch_map("blocks.5.mlp", 7, row=12).values  # (H, W)

        Raises `NotKeptError` for a map that the index did not keep.
        """
        [maps] = self.patch_maps([(layer, channel, row)], index=index)
        return convert.one_map(maps)

    def similar_images(
        self,
        layer: str,
        row: SupportsIndex,
        *,
        k: SupportsIndex | None = None,
        exact: bool = False,
        index: str = "",
    ) -> SimilarImages:
        """The `k` images nearest to image `row` in a layer's activation space.

        near = client.similar_images("blocks.5.mlp", row=12, k=9)
        if not near.exact:
            print(f"finds {near.recall_at_10:.0%} of the true neighbours")

        Without `k` the server gives 20 images, or all if there are fewer. `exact` holds the image
        against every other one, however long that takes.
        """
        request = requests.similar_images_request(index, layer, row, k, exact)
        reply = self._ask(self._stub.SimilarImages, request)
        return self._with_source(request, convert.similar_images(reply, layer, row))

    def similar_patches(
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
        """The `k` patches of all images nearest to a `patch` (y, x) of image `row`.

        for near in client.similar_patches("blocks.11.mlp", 12, (3, 4), other_images=True).patches:
            print(near.row, near.source, near.score)

        By cosine of their activations in the layer. `other_images` leaves out those of the same
        image; `exact` holds the patch against every other one, however long that takes. Raises
        `NotKeptError` for a layer that was not indexed with `--retain-all`.
        """
        request = requests.similar_patches_request(index, layer, row, patch, k, other_images, exact)
        reply = self._ask(self._stub.SimilarPatches, request)
        return self._with_source(request, convert.similar_patches(reply, layer, row, patch))

    def top_images_along(
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
        """The `k` images that lie farthest along a direction in a layer's activation space.

        client.top_images_along("blocks.11.mlp", {7: 1.0, 9: -0.5})
        client.top_images_along("blocks.11.mlp", probe.coef_[0], measure="cosine")
        client.top_images_along("blocks.11.mlp", "sae/12")  # as `directions` lists it

        `direction` has weights by channel, a weight for every channel (C,), or a name; weights go
        as float32. `measure` 'projection' is the weighted sum of the scores by `pooling`, 'cosine'
        that of the angle to the mean-pooled activations. Both look at every image.
        """
        request = requests.top_images_along_request(
            index, layer, direction, measure, pooling, k, where
        )
        reply = self._ask(self._stub.TopImagesAlongDirection, request)
        return self._with_source(request, convert.top_images_along(reply, layer, measure, pooling))

    def directions(self, layer: str = "", *, index: str = "") -> Directions:
        """The directions that the server has beside an index, of a layer or of all."""
        request = requests.directions_request(index, layer)
        reply = self._ask(self._stub.ListDirections, request)
        return convert.directions(reply)

    def compare_channels(
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
        """The `k` channels that change most from an index to another of the same pictures, exactly.

        lost = client.compare_channels("clean", "no-background", "blocks.5.mlp", order="bottom")

        By `measure`: 'effect', the mean difference (other minus index) in standard deviations of
        the channel's scores in `index`; 'difference' itself; or 'correlation' of the scores in the
        two. `order` 'top' has the greatest rise first, 'bottom' the greatest fall. Raises
        `NotKeptError` where rows or layers of the two do not pair.
        """
        request = requests.compare_channels_request(
            index, other, layer, pooling, where, measure, order, k
        )
        reply = self._ask(self._stub.CompareChannels, request)
        return convert.changed_channels(reply, layer)

    def compare_images(
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
        """The `k` images on which a channel changes most from one index to another, exactly.

        client.compare_images("clean", "no-background", "blocks.5.mlp", 7, order="bottom")
        """
        request = requests.compare_images_request(
            index, other, layer, channel, pooling, where, order, k
        )
        reply = self._ask(self._stub.CompareImages, request)
        return self._with_source(request, convert.changed_images(reply, layer, channel))

    def scores(
        self,
        layer: str,
        channels: Collection[SupportsIndex] | None = None,
        *,
        pooling: str = "mean",
        index: str = "",
    ) -> Scores:
        """The scores of all images, of all channels of the layer without any, exactly.

        scores = client.scores("blocks.5.mlp", [7, 9], pooling="max")
        scores.values[0]  # (N,) float16 of channel 7, NaN where an image could not be read

        A whole layer takes 2 bytes for each channel and image: `scores_stream` holds less at once.
        """
        return scores.joined_scores(
            self.scores_stream(layer, channels, pooling=pooling, index=index)
        )

    def scores_stream(
        self,
        layer: str,
        channels: Collection[SupportsIndex] | None = None,
        *,
        pooling: str = "mean",
        index: str = "",
    ) -> Iterator[ScoreBlock]:
        """`scores` in blocks of one or two megabytes as they come, channel after channel.

        for block in client.scores_stream("blocks.5.mlp"):
            print(block.channels, block.first_row, block.values.shape)

        A block has several whole channels, or a part of one whose rows go on in the next. The
        client's `timeout` is that of the whole stream, with the time spent inside of the loop.
        """
        request = requests.scores_request(index, layer, channels, pooling)
        return self._scores_stream(request, layer, channels)

    def _scores_stream(
        self,
        request: query_pb2.GetScoresRequest,
        layer: str,
        channels: Collection[SupportsIndex] | None,
    ) -> Iterator[ScoreBlock]:
        checked = scores.BlocksInOrder(layer, channels)
        for reply in self._each(self._stub.GetScores, request):
            yield checked.take(reply)
        checked.end()

    def analyze_image(
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
        """What channels make of an own picture: the server's live model runs it once.

        own = client.analyze_image(Path("fox.jpg"), percentiles=True, include_maps=True)
        for channel in own.channels:
            print(channel.layer, channel.channel, channel.percentile)

        `picture` is the bytes of a picture file, or its path; 3 MiB at most. The strongest
        `channels` of some `layers` or all, by `pooling`, or with `percentiles` by the share of
        images that score lower; the nearest images (`neighbours` of them in each layer); the maps
        of channels named in `maps` as (layer, channel), and with `include_maps` of the strongest.
        0 channels or neighbours means none. Raises `NotKeptError` where the server has no live
        model, and `InvalidRequestError` for what is no picture.
        """
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
        reply = self._ask(self._stub.AnalyzeImage, request)
        return self._with_source(request, convert.analyzed_image(reply, maps, include_maps))

    def images(
        self, rows: Sequence[SupportsIndex], *, pictures: bool = True, index: str = ""
    ) -> list[Image]:
        """Names and thumbnails of images, in the order of `rows`.

        [image] = client.images([12])
        PIL.Image.open(io.BytesIO(image.jpeg))

        Without `pictures` a server gives up to 100,000 at a time, with `jpeg` empty.
        """
        request = requests.images_request(index, rows, pictures)
        replies = list(self._each(self._stub.GetImages, request))
        return convert.images_stream(replies, rows)
