"""The synchronous client: one method per question, results in plain Python and numpy."""

import os
from collections.abc import Collection, Sequence
from typing import SupportsIndex

from vitscope.client import convert, convert_maps, fields, requests
from vitscope.client.channels import ChannelQuestions
from vitscope.client.filters import ImageFilter
from vitscope.client.results import (
    AnalyzedImage,
    Directions,
    Image,
    Index,
    PatchMap,
    PatchMaps,
    SimilarImages,
    SimilarPatches,
    TopChannels,
    TopImagesAlong,
)
from vitscope.v1 import query_pb2


class Client(ChannelQuestions):
    """A connection to a vitscope server; safe to share between threads.

    with Client("127.0.0.1:50051") as client:
        top = client.top_images("blocks.5.mlp", 7, k=9, maps=True)
        for image in top.images:
            print(image.row, image.label, image.score)

    `address` is HOST:PORT, or several of replicas, which take calls in turn as long as they are
    healthy. `timeout` is the longest any one call may take, in seconds, with all its `retries`;
    before the first one to several addresses their names are looked up, for as long at most.
    `tls` says how the server is trusted, `token` who asks. Nothing is sent before the first
    question. Every method raises a `VitscopeError`: `UnavailableError` where nothing answers,
    `DeadlineError` after `timeout`, `OverloadedError` where a server has no room,
    `InvalidRequestError` or `NotFoundError` for a question with no answer.

    In every method an empty `index` means the server's only index.
    """

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

    def patch_maps(
        self,
        selectors: Sequence[fields.Selector],
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
        found = convert_maps.patch_maps_stream(replies, selectors)
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
        [maps] = convert_maps.patch_maps_stream(replies, asked)
        return self._with_source(request, maps)

    def patch_map(
        self, layer: str, channel: SupportsIndex, row: SupportsIndex, *, index: str = ""
    ) -> PatchMap:
        """The patch map of one channel on one image.

        heat = client.patch_map("blocks.5.mlp", 7, row=12).values  # (H, W)

        Raises `NotKeptError` for a map that the index did not keep, where the server has no live
        model.
        """
        [maps] = self.patch_maps([(layer, channel, row)], index=index)
        return convert_maps.one_map(maps)

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
        direction: fields.Direction,
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

    def analyze_image(
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
            fields.picture_bytes(picture),
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
        return convert_maps.images_stream(replies, rows)
