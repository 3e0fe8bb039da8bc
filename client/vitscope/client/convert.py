"""From replies to results, and never from a reply that makes no sense.

Those with maps and pictures are read by `convert_maps`.
"""

import operator
from collections.abc import Collection, Iterable, Sequence
from typing import SupportsIndex

import numpy as np

from vitscope.client import entries, results
from vitscope.client.convert_maps import image, patch_grid, patch_maps, require_asked, require_place
from vitscope.client.errors import ServerError
from vitscope.client.fields import POOLINGS, ChannelSelector
from vitscope.v1 import index_pb2, query_pb2

_POOLING_NAMES = {value: name for name, value in POOLINGS.items()}


def pooling_name(value: index_pb2.Pooling.ValueType) -> str:
    """The name of an enum value, readable also where a newer server sends an unknown one."""
    return _POOLING_NAMES.get(value, f"unknown({value})")


def index(message: index_pb2.Index) -> results.Index:
    model = message.model
    return results.Index(
        name=message.name,
        generation=message.generation,
        model=entries.Model(
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
        live_model=message.live_model,
    )


def layer(message: index_pb2.Layer, model: index_pb2.Model) -> entries.Layer:
    """A layer of an index that was made with `model`."""
    return entries.Layer(
        name=message.name,
        depth=message.depth,
        channels=message.channels,
        tokens=token_layout(message.tokens, model),
        poolings=tuple(map(pooling_name, message.poolings)),
        maps_per_channel=message.maps_per_channel,
    )


def token_layout(message: index_pb2.TokenLayout, model: index_pb2.Model) -> entries.TokenLayout:
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
    require_place(grid, message.height, message.width)
    return entries.TokenLayout(
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
        candidates=message.candidates,
    )


class TopImagesInOrder:
    """The answers of a stream, which have to come in the order of the channels asked for."""

    def __init__(self, layer: str, channels: Collection[SupportsIndex] | None) -> None:
        self._layer = layer
        self._asked = None if channels is None else list(map(operator.index, channels))
        self._count = 0

    def take(self, message: query_pb2.TopImagesResponse) -> results.TopImages:
        """The next answer."""
        at, asked = self._count, self._asked
        if asked is not None and asked[at : at + 1] != [message.channel]:
            raise ServerError("The server sent other channels than those asked for.")
        self._count += 1
        return top_images(message, self._layer, message.channel)

    def end(self) -> None:
        """Raise `ServerError` where channels are missing."""
        if self._asked is not None and self._count < len(self._asked):
            raise ServerError(
                f"The server sent {self._count} channels where {len(self._asked)} were asked for."
            )


def channel_statistics(
    message: query_pb2.GetChannelStatisticsResponse, layer: str
) -> results.ChannelStatistics:
    count, levels = len(message.channels), len(message.quantile_levels)
    columns = message.mean, message.variance, message.active
    if any(len(each) != count for each in columns) or len(message.quantiles) != count * levels:
        raise ServerError(
            f"The server's reply is inconsistent: statistics of {count} channels with "
            f"{len(message.mean)} means and {len(message.quantiles)} quantiles at {levels} levels."
        )
    return results.ChannelStatistics(
        generation=message.generation,
        layer=layer,
        pooling=pooling_name(message.pooling),
        channels=np.array(message.channels, np.int32),
        mean=np.array(message.mean, np.float64),
        variance=np.array(message.variance, np.float64),
        active=np.array(message.active, np.float64),
        quantile_levels=np.array(message.quantile_levels, np.float64),
        quantiles=np.array(message.quantiles, np.float32).reshape(count, levels),
    )


def top_patches(
    message: query_pb2.TopPatchesResponse, layer: str, channel: SupportsIndex
) -> results.TopPatches:
    """The reply joined with the question, which it does not repeat."""
    return results.TopPatches(
        generation=message.generation,
        layer=layer,
        channel=operator.index(channel),
        patches=tuple(map(scored_patch, message.patches)),
        grid=_grid_of(message.grid, message.patches),
    )


def _grid_of(
    grid: query_pb2.PatchGrid, patches: Iterable[query_pb2.ScoredPatch]
) -> entries.PatchGrid:
    """A grid that has these patches at least."""
    height, width = (1 + max((getattr(p, axis) for p in patches), default=0) for axis in "yx")
    return patch_grid(grid, height, width)


def scored_patch(message: query_pb2.ScoredPatch) -> entries.ScoredPatch:
    source = message.source
    return entries.ScoredPatch(
        row=message.row,
        key=message.key,
        label=message.label if message.HasField("label") else None,
        y=message.y,
        x=message.x,
        score=message.score,
        source=(source.x0, source.y0, source.x1, source.y1) if message.HasField("source") else None,
    )


def channel_box_scores(
    message: query_pb2.GetBoxScoresResponse, layer: str
) -> results.ChannelBoxScores:
    count = len(message.channels)
    told = len(message.inside_images)
    if len(message.images) != count or len(message.scores) != count or told not in (0, count):
        raise ServerError(
            f"The server's reply is inconsistent: {count} channels, {len(message.images)} and "
            f"{told} counts and {len(message.scores)} scores."
        )
    columns = {
        name: np.array([getattr(each, name) for each in message.scores], np.float64)
        for name in ("inside", "area", "auc", "contrast")
    }
    return results.ChannelBoxScores(
        generation=message.generation,
        layer=layer,
        channels=np.array(message.channels, np.int32),
        images=np.array(message.images, np.int64),
        inside_images=np.array(message.inside_images, np.int64) if told == count else None,
        **columns,
    )


def top_images_by_box(
    message: query_pb2.TopImagesByBoxResponse, layer: str, channel: SupportsIndex
) -> results.TopImagesByBox:
    """The reply joined with the question, which it does not repeat."""
    return results.TopImagesByBox(
        generation=message.generation,
        layer=layer,
        channel=operator.index(channel),
        images=tuple(map(boxed_image, message.images)),
        candidates=message.candidates,
    )


def boxed_image(message: query_pb2.BoxedImage) -> entries.BoxedImage:
    scores = message.scores
    return entries.BoxedImage(
        row=message.row,
        key=message.key,
        label=message.label if message.HasField("label") else None,
        scores=entries.BoxScores(scores.inside, scores.area, scores.auc, scores.contrast),
    )


def changed_channels(
    message: query_pb2.CompareChannelsResponse, layer: str
) -> results.ChangedChannels:
    """The reply joined with the question, which it does not repeat."""
    _require_distinct("channel", [each.channel for each in message.channels])
    channels = tuple(
        entries.ChannelChange(
            each.channel,
            each.mean,
            each.other_mean,
            each.difference,
            each.effect,
            each.correlation,
        )
        for each in message.channels
    )
    return results.ChangedChannels(
        message.generation, message.other_generation, layer, channels, message.images
    )


def changed_images(
    message: query_pb2.CompareImagesResponse, layer: str, channel: SupportsIndex
) -> results.ChangedImages:
    """The reply joined with the question, which it does not repeat."""
    _require_distinct("row", [each.row for each in message.images])
    images = tuple(
        entries.ChangedImage(
            row=each.row,
            key=each.key,
            label=each.label if each.HasField("label") else None,
            score=each.score,
            other_score=each.other_score,
            difference=each.difference,
        )
        for each in message.images
    )
    return results.ChangedImages(
        message.generation,
        message.other_generation,
        layer,
        operator.index(channel),
        images,
        message.candidates,
    )


def _require_distinct(what: str, numbers: Sequence[int]) -> None:
    """Raise `ServerError` where a ranking has a number that is none, or has one twice."""
    if len(set(numbers)) != len(numbers) or any(number < 0 for number in numbers):
        raise ServerError(
            f"The server's reply is inconsistent: it ranks a {what} twice, or one below 0."
        )


def top_channels(message: query_pb2.TopChannelsResponse, row: SupportsIndex) -> results.TopChannels:
    """The reply joined with the question, which it does not repeat."""
    channels = tuple(map(scored_channel, message.channels))
    return results.TopChannels(message.generation, operator.index(row), channels)


def similar_channels(
    message: query_pb2.SimilarChannelsResponse, layer: str, channel: SupportsIndex
) -> results.SimilarChannels:
    """The reply joined with the question, which it does not repeat."""
    channels = tuple(map(scored_channel, message.channels))
    return results.SimilarChannels(message.generation, layer, operator.index(channel), channels)


def scored_channel(message: query_pb2.ScoredChannel) -> entries.ScoredChannel:
    percentile = message.percentile if message.HasField("percentile") else None
    return entries.ScoredChannel(message.layer, message.channel, message.score, percentile)


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


def similar_patches(
    message: query_pb2.SimilarPatchesResponse,
    layer: str,
    row: SupportsIndex,
    patch: tuple[SupportsIndex, SupportsIndex],
) -> results.SimilarPatches:
    """The reply joined with the question, which it does not repeat."""
    return results.SimilarPatches(
        generation=message.generation,
        layer=layer,
        row=operator.index(row),
        patch=(operator.index(patch[0]), operator.index(patch[1])),
        patches=tuple(map(scored_patch, message.patches)),
        grid=_grid_of(message.grid, message.patches),
        exact=message.exact,
        recall_at_10=message.recall_at_10,
    )


def top_images_along(
    message: query_pb2.TopImagesAlongDirectionResponse, layer: str, measure: str, pooling: str
) -> results.TopImagesAlong:
    """The reply joined with the question, which it does not repeat."""
    return results.TopImagesAlong(
        generation=message.generation,
        layer=layer,
        measure=measure,
        pooling=pooling,
        images=tuple(map(scored_image, message.images)),
        candidates=message.candidates,
    )


def directions(message: query_pb2.ListDirectionsResponse) -> results.Directions:
    found = [
        entries.NamedDirections(each.layer, each.name, each.count) for each in message.directions
    ]
    return results.Directions(message.generation, tuple(found))


def scored_image(message: query_pb2.ScoredImage) -> entries.ScoredImage:
    distinct = message.distinctness
    return entries.ScoredImage(
        row=message.row,
        key=message.key,
        label=message.label if message.HasField("label") else None,
        score=message.score,
        distinctness=entries.Distinctness(distinct.score, distinct.hubs)
        if message.HasField("distinctness")
        else None,
    )


def analyzed_image(
    message: query_pb2.AnalyzeImageResponse,
    maps: Iterable[ChannelSelector],
    include_maps: bool,
) -> results.AnalyzedImage:
    """The reply, whose maps have to be those asked for."""
    channels = tuple(map(scored_channel, message.channels))
    found = [one for each in message.maps for one in _own_maps(each, message.generation)]
    strongest = [(each.layer, each.channel) for each in channels if include_maps]
    asked = [*strongest, *((layer, operator.index(channel)) for layer, channel in maps)]
    require_asked("maps", [(each.layer, each.channel) for each in found], asked)
    picture = image(message.image, message.generation)
    return results.AnalyzedImage(
        generation=message.generation,
        channels=channels,
        neighbours=tuple(
            results.Neighbours(
                layer=each.layer,
                images=tuple(map(scored_image, each.images)),
                exact=each.exact,
                recall_at_10=each.recall_at_10,
            )
            for each in message.neighbours
        ),
        maps=tuple(found),
        jpeg=picture.jpeg,
        width=picture.width,
        height=picture.height,
        view=picture.view,
        same_as_row=message.same_as_row if message.HasField("same_as_row") else None,
    )


def _own_maps(message: query_pb2.PatchMaps, generation: str) -> list[entries.ChannelMap]:
    """Maps of a picture that has no row."""
    if message.rows:
        raise ServerError("The server's reply is inconsistent: maps of an own picture with rows.")
    filled = query_pb2.PatchMaps()
    filled.CopyFrom(message)
    filled.rows.extend([0] * len(message.channels))
    maps = patch_maps(filled, generation)
    return [
        entries.ChannelMap(maps.layer, channel, values, maps.grid)
        for channel, values in zip(maps.channels.tolist(), maps.values, strict=True)
    ]
