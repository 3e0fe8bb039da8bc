"""From plain values to replies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vitscope.server.queries.analysis import Analysis
from vitscope.server.queries.boxes import RankedByBox, Scores
from vitscope.server.queries.channels import Channels, Statistics
from vitscope.server.queries.compare import ChangedChannels, ChangedImages
from vitscope.server.queries.images import Ranking, TopImages
from vitscope.server.queries.maps import Maps, as_bytes
from vitscope.server.queries.patches import Patches
from vitscope.server.queries.scores import Block as ScoreBlock
from vitscope.store.generation import Generation
from vitscope.store.geometry import Rectangle, source_rectangles
from vitscope.store.manifest import QUANTILES, LayerRecord, Pooling
from vitscope.v1 import index_pb2, query_pb2

_POOLING_NUMBERS: Mapping[Pooling, index_pb2.Pooling.ValueType] = {
    "mean": index_pb2.POOLING_MEAN,
    "max": index_pb2.POOLING_MAX,
    "cls": index_pb2.POOLING_CLS,
}
_MESSAGE_BYTES = 1 << 20


def pooling_to(pooling: Pooling) -> index_pb2.Pooling.ValueType:
    """The wire's number of a pooling."""
    return _POOLING_NUMBERS[pooling]


def index_to(
    name: str, generation: Generation, *, layers: bool, live: bool = False
) -> index_pb2.Index:
    """Description of an index, with its layers or without."""
    manifest = generation.manifest
    model = manifest.model
    return index_pb2.Index(
        name=name,
        generation=generation.name,
        model=index_pb2.Model(
            name=model.name,
            weights_sha256=model.weights_sha256,
            weights_source=model.weights_source,
            input_height=model.input_size[0],
            input_width=model.input_size[1],
            dtype=model.dtype,
        ),
        rows=manifest.rows,
        valid_rows=manifest.valid_rows,
        layers=[_layer_to(layer) for layer in manifest.layers] if layers else (),
        live_model=live,
    )


def _layer_to(layer: LayerRecord) -> index_pb2.Layer:
    return index_pb2.Layer(
        name=layer.name,
        depth=layer.depth,
        channels=layer.channels,
        tokens=index_pb2.TokenLayout(
            prefix=layer.tokens.prefix,
            height=layer.tokens.height,
            width=layer.tokens.width,
            cell_height=layer.tokens.cell_height,
            cell_width=layer.tokens.cell_width,
            top=layer.tokens.top,
            left=layer.tokens.left,
        ),
        poolings=[pooling_to(pooling) for pooling in layer.poolings],
        maps_per_channel=layer.top_k,
    )


def top_images_to(
    generation: Generation, pooling: Pooling, top: TopImages, maps: Maps | None
) -> query_pb2.TopImagesResponse:
    """The ranked images of a channel."""
    return query_pb2.TopImagesResponse(
        generation=generation.name,
        pooling=pooling_to(pooling),
        images=ranking_to(generation, top.ranking),
        maps=None if maps is None else maps_to(generation, maps),
        layer=top.layer.name,
        channel=top.channel,
        candidates=top.candidates,
    )


def ranking_to(generation: Generation, ranking: Ranking) -> list[query_pb2.ScoredImage]:
    """Ranked images with their keys and labels."""
    rows = generation.rows
    images = [
        query_pb2.ScoredImage(row=row, key=rows.key(row), label=rows.label(row), score=score)
        for row, score in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
    ]
    if ranking.distinct:
        scores, hubs = ranking.distinct.scores.tolist(), ranking.distinct.hubs.tolist()
        for image, score, hub in zip(images, scores, hubs, strict=True):
            image.distinctness.score, image.distinctness.hubs = score, hub
    return images


def statistics_to(
    generation: Generation, pooling: Pooling, found: Statistics
) -> query_pb2.GetChannelStatisticsResponse:
    """Statistics of channels."""
    return query_pb2.GetChannelStatisticsResponse(
        generation=generation.name,
        pooling=pooling_to(pooling),
        channels=found.channels,
        mean=found.values.mean.tolist(),
        variance=found.values.variance.tolist(),
        active=found.values.active.tolist(),
        quantile_levels=QUANTILES,
        quantiles=found.values.quantiles.ravel().tolist(),
    )


def patches_to(generation: Generation, patches: Patches) -> list[query_pb2.ScoredPatch]:
    """Ranked patches with the pixels that they cover."""
    table, size = generation.rows, generation.manifest.model.input_size
    views = {row: table.view(row) for row in set(patches.rows.tolist())}
    found = []
    for row, y, x, score in zip(
        *(each.tolist() for each in (patches.rows, patches.ys, patches.xs, patches.scores)),
        strict=True,
    ):
        view = views[row]
        source = None if view is None else source_rectangles(patches.layer.tokens, view, size)[y, x]
        found.append(
            query_pb2.ScoredPatch(
                row=row,
                key=table.key(row),
                label=table.label(row),
                y=y,
                x=x,
                score=score,
                source=None if source is None else _rectangle_to(source.tolist()),
            )
        )
    return found


def channels_to(channels: Channels) -> list[query_pb2.ScoredChannel]:
    """Ranked channels."""
    found = [
        query_pb2.ScoredChannel(layer=layer, channel=channel, score=score)
        for layer, channel, score in zip(
            channels.layers, channels.channels.tolist(), channels.scores.tolist(), strict=True
        )
    ]
    if channels.percentiles is not None:
        for message, percentile in zip(found, channels.percentiles.tolist(), strict=True):
            message.percentile = percentile
    return found


def box_scores_to(scores: Scores) -> list[query_pb2.BoxScores]:
    """How maps, or channels, lie to boxes."""
    columns = (scores.inside, scores.area, scores.auc, scores.contrast)
    return [
        query_pb2.BoxScores(inside=inside, area=area, auc=auc, contrast=contrast)
        for inside, area, auc, contrast in zip(*(each.tolist() for each in columns), strict=True)
    ]


def ranked_by_box_to(
    generation: Generation, ranked: RankedByBox
) -> query_pb2.TopImagesByBoxResponse:
    """Images ranked by how their maps lie to boxes."""
    table = generation.rows
    images = [
        query_pb2.BoxedImage(row=row, key=table.key(row), label=table.label(row), scores=scores)
        for row, scores in zip(ranked.rows.tolist(), box_scores_to(ranked.scores), strict=True)
    ]
    return query_pb2.TopImagesByBoxResponse(
        generation=generation.name, images=images, candidates=ranked.candidates
    )


def changed_channels_to(
    generation: Generation, other: Generation, found: ChangedChannels
) -> query_pb2.CompareChannelsResponse:
    """Channels by their change between two indexes."""
    columns = (
        found.channels,
        found.mean,
        found.other_mean,
        found.difference,
        found.effect,
        found.correlation,
    )
    names = ("channel", "mean", "other_mean", "difference", "effect", "correlation")
    changes = [
        query_pb2.ChannelChange(**dict(zip(names, values, strict=True)))
        for values in zip(*(each.tolist() for each in columns), strict=True)
    ]
    return query_pb2.CompareChannelsResponse(
        generation=generation.name,
        other_generation=other.name,
        channels=changes,
        images=found.images,
    )


def changed_images_to(
    generation: Generation, other: Generation, found: ChangedImages
) -> query_pb2.CompareImagesResponse:
    """Images by the change of a channel between two indexes."""
    table = generation.rows
    columns = (found.rows, found.scores, found.other_scores, found.differences)
    images = [
        query_pb2.ChangedImage(
            row=row,
            key=table.key(row),
            label=table.label(row),
            score=score,
            other_score=other_score,
            difference=difference,
        )
        for row, score, other_score, difference in zip(
            *(each.tolist() for each in columns), strict=True
        )
    ]
    return query_pb2.CompareImagesResponse(
        generation=generation.name,
        other_generation=other.name,
        images=images,
        candidates=found.candidates,
    )


def maps_to(generation: Generation, maps: Maps, *, in_bytes: bool = False) -> query_pb2.PatchMaps:
    """Patch maps of a layer, and where their patches lie."""
    message = query_pb2.PatchMaps(
        layer=maps.layer,
        rows=maps.rows,
        channels=maps.channels,
        height=maps.values.shape[1],
        width=maps.values.shape[2],
        grid=grid_to(generation, generation.layer(maps.layer)),
        encoding=query_pb2.MAP_ENCODING_FLOAT16,
        source=query_pb2.MAP_SOURCE_RECOMPUTED if maps.recomputed else query_pb2.MAP_SOURCE_KEPT,
    )
    if in_bytes:
        small = as_bytes(maps)
        message.encoding = query_pb2.MAP_ENCODING_UINT8
        message.values = small.codes.tobytes()
        message.scale.extend(small.scale.tolist())
        message.offset.extend(small.offset.tolist())
    else:
        message.values = np.ascontiguousarray(maps.values, dtype="<f2").tobytes()
    return message


def grid_to(generation: Generation, layer: LayerRecord) -> query_pb2.PatchGrid:
    """Where the patches of a layer lie in the model's input."""
    height, width = generation.manifest.model.input_size
    tokens = layer.tokens
    return query_pb2.PatchGrid(
        input_height=height,
        input_width=width,
        cell_height=tokens.cell_height,
        cell_width=tokens.cell_width,
        top=tokens.top,
        left=tokens.left,
    )


def scores_to(
    generation: Generation, pooling: Pooling, block: ScoreBlock
) -> query_pb2.GetScoresResponse:
    """Scores of channels on rows that follow each other."""
    return query_pb2.GetScoresResponse(
        generation=generation.name,
        pooling=pooling_to(pooling),
        channels=block.channels,
        first_row=block.first_row,
        rows=block.values.shape[1],
        scores=np.ascontiguousarray(block.values, dtype="<f2").tobytes(),
    )


def images_to(
    generation: Generation, rows: Sequence[int], *, pictures: bool
) -> Iterator[query_pb2.GetImagesResponse]:
    """Images in messages of about a megabyte, with their pictures or without."""
    batch: list[query_pb2.Image] = []
    size = 0
    table = generation.rows
    for row in rows:
        width, height = table.sizes[row].tolist()
        image = query_pb2.Image(
            row=row,
            key=table.key(row),
            label=table.label(row),
            valid=bool(table.valid[row]),
            invalid_reason=table.reason(row),
            jpeg=generation.thumbnail(row) if pictures else b"",
            width=width,
            height=height,
            view=_rectangle_to(table.view(row)),
        )
        batch.append(image)
        size += image.ByteSize()
        if size > _MESSAGE_BYTES:
            yield query_pb2.GetImagesResponse(generation=generation.name, images=batch)
            batch, size = [], 0
    if batch:
        yield query_pb2.GetImagesResponse(generation=generation.name, images=batch)


def analysis_to(generation: Generation, analysis: Analysis) -> query_pb2.AnalyzeImageResponse:
    """The answer about it."""
    picture = analysis.picture
    width, height = picture.size
    return query_pb2.AnalyzeImageResponse(
        generation=generation.name,
        channels=channels_to(analysis.channels),
        neighbours=[
            query_pb2.LayerNeighbours(
                layer=layer,
                images=ranking_to(generation, near.ranking),
                exact=near.exact,
                recall_at_10=near.recall,
            )
            for layer, near in analysis.neighbours
        ],
        maps=[maps_to(generation, maps) for maps in analysis.maps],
        image=query_pb2.Image(
            valid=True,
            jpeg=picture.thumbnail,
            width=width,
            height=height,
            view=_rectangle_to(picture.view),
        ),
        same_as_row=analysis.same_as_row,
    )


def _rectangle_to(rectangle: Rectangle | None) -> query_pb2.Rectangle | None:
    if rectangle is None:
        return None
    x0, y0, x1, y1 = rectangle
    return query_pb2.Rectangle(x0=x0, y0=y0, x1=x1, y1=y1)
