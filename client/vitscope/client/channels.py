"""What the synchronous client asks about channels."""

from collections.abc import Collection, Iterator, Sequence
from typing import SupportsIndex

from vitscope.client import convert, requests, scores
from vitscope.client.asking import Asking
from vitscope.client.filters import ImageFilter
from vitscope.client.results import (
    ChangedChannels,
    ChangedImages,
    ChannelBoxScores,
    ChannelStatistics,
    ScoreBlock,
    Scores,
    SimilarChannels,
    TopImages,
    TopImagesByBox,
    TopPatches,
)
from vitscope.v1 import query_pb2


class ChannelQuestions(Asking):
    """Which images and patches make a channel fire, what it looks at, and how it changes."""

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
