"""Between the wire and plain values; protobuf stops here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vitscope.server.errors import InvalidArgumentError
from vitscope.server.queries import Maps, Ranking
from vitscope.store.generation import Generation
from vitscope.store.geometry import Rectangle
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.v1 import index_pb2, query_pb2

_POOLINGS: Mapping[int, Pooling] = {
    index_pb2.POOLING_UNSPECIFIED: "mean",
    index_pb2.POOLING_MEAN: "mean",
    index_pb2.POOLING_MAX: "max",
    index_pb2.POOLING_CLS: "cls",
}
_POOLING_NUMBERS: Mapping[Pooling, index_pb2.Pooling.ValueType] = {
    "mean": index_pb2.POOLING_MEAN,
    "max": index_pb2.POOLING_MAX,
    "cls": index_pb2.POOLING_CLS,
}
_MESSAGE_BYTES = 1 << 20


def pooling_from(number: int) -> Pooling:
    """The pooling a request names; unspecified means `mean`."""
    if number not in _POOLINGS:
        raise InvalidArgumentError(
            f"pooling is {number}; it must be POOLING_MEAN, POOLING_MAX or POOLING_CLS."
        )
    return _POOLINGS[number]


def pooling_to(pooling: Pooling) -> index_pb2.Pooling.ValueType:
    """The wire's number of a pooling."""
    return _POOLING_NUMBERS[pooling]


def index_to(name: str, generation: Generation, *, layers: bool) -> index_pb2.Index:
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


def ranking_to(generation: Generation, ranking: Ranking) -> list[query_pb2.ScoredImage]:
    """Ranked images with their keys and labels."""
    rows = generation.rows
    return [
        query_pb2.ScoredImage(row=row, key=rows.key(row), label=rows.label(row), score=score)
        for row, score in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
    ]


def maps_to(generation: Generation, maps: Maps) -> query_pb2.PatchMaps:
    """Patch maps of a layer, and where their patches lie."""
    tokens = generation.layer(maps.layer).tokens
    height, width = generation.manifest.model.input_size
    return query_pb2.PatchMaps(
        layer=maps.layer,
        rows=maps.rows,
        channels=maps.channels,
        height=maps.values.shape[1],
        width=maps.values.shape[2],
        values=np.ascontiguousarray(maps.values, dtype="<f2").tobytes(),
        grid=query_pb2.PatchGrid(
            input_height=height,
            input_width=width,
            cell_height=tokens.cell_height,
            cell_width=tokens.cell_width,
            top=tokens.top,
            left=tokens.left,
        ),
    )


def images_to(generation: Generation, rows: Sequence[int]) -> Iterator[query_pb2.GetImagesResponse]:
    """Images in messages of about a megabyte."""
    batch: list[query_pb2.Image] = []
    size = 0
    for row in rows:
        record = generation.rows.record(row)
        image = query_pb2.Image(
            row=row,
            key=record.key,
            label=record.label,
            valid=record.valid,
            invalid_reason=record.reason,
            jpeg=generation.thumbnail(row),
            width=record.width,
            height=record.height,
            view=_rectangle_to(record.view),
        )
        batch.append(image)
        size += len(image.jpeg)
        if size > _MESSAGE_BYTES:
            yield query_pb2.GetImagesResponse(generation=generation.name, images=batch)
            batch, size = [], 0
    if batch:
        yield query_pb2.GetImagesResponse(generation=generation.name, images=batch)


def _rectangle_to(rectangle: Rectangle | None) -> query_pb2.Rectangle | None:
    if rectangle is None:
        return None
    x0, y0, x1, y1 = rectangle
    return query_pb2.Rectangle(x0=x0, y0=y0, x1=x1, y1=y1)
