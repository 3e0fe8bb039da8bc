"""From requests to plain values; protobuf stops here and in `replies`."""

from __future__ import annotations

from collections.abc import Mapping

from vitscope.server.errors import InvalidArgumentError
from vitscope.server.queries import directions
from vitscope.server.queries.analysis import Question as AnalysisQuestion
from vitscope.server.queries.boxes import Measure
from vitscope.server.queries.channels import BoxNumber, Patch, Where
from vitscope.server.queries.compare import Change
from vitscope.server.queries.directions import Direction, Named, Vector, Weights
from vitscope.server.queries.filters import ImageFilter
from vitscope.server.queries.images import Order, Question
from vitscope.store.manifest import Pooling
from vitscope.v1 import index_pb2, query_pb2

_POOLINGS: Mapping[int, Pooling] = {
    index_pb2.POOLING_UNSPECIFIED: "mean",
    index_pb2.POOLING_MEAN: "mean",
    index_pb2.POOLING_MAX: "max",
    index_pb2.POOLING_CLS: "cls",
}
_ORDERS: Mapping[int, Order] = {
    query_pb2.ORDER_UNSPECIFIED: "top",
    query_pb2.ORDER_TOP: "top",
    query_pb2.ORDER_BOTTOM: "bottom",
}
_BOX_MEASURES: Mapping[int, Measure] = {
    query_pb2.BOX_MEASURE_UNSPECIFIED: "contrast",
    query_pb2.BOX_MEASURE_CONTRAST: "contrast",
    query_pb2.BOX_MEASURE_INSIDE: "inside",
    query_pb2.BOX_MEASURE_AUC: "auc",
}
_DIRECTION_MEASURES: Mapping[int, directions.Measure] = {
    query_pb2.DIRECTION_MEASURE_UNSPECIFIED: "projection",
    query_pb2.DIRECTION_MEASURE_PROJECTION: "projection",
    query_pb2.DIRECTION_MEASURE_COSINE: "cosine",
}
_CHANGES: Mapping[int, Change] = {
    query_pb2.CHANGE_MEASURE_UNSPECIFIED: "effect",
    query_pb2.CHANGE_MEASURE_EFFECT: "effect",
    query_pb2.CHANGE_MEASURE_DIFFERENCE: "difference",
    query_pb2.CHANGE_MEASURE_CORRELATION: "correlation",
}
_Counted = (
    query_pb2.TopImagesRequest
    | query_pb2.TopImagesOfChannelsRequest
    | query_pb2.TopImagesByBoxRequest
    | query_pb2.TopPatchesRequest
    | query_pb2.TopChannelsRequest
    | query_pb2.SimilarImagesRequest
    | query_pb2.SimilarChannelsRequest
    | query_pb2.CompareChannelsRequest
    | query_pb2.CompareImagesRequest
    | query_pb2.SimilarPatchesRequest
    | query_pb2.TopImagesAlongDirectionRequest
)


def pooling_from(number: int) -> Pooling:
    """The pooling a request names; unspecified means `mean`."""
    if number not in _POOLINGS:
        raise InvalidArgumentError(
            f"pooling is {number}; it must be POOLING_MEAN, POOLING_MAX or POOLING_CLS."
        )
    return _POOLINGS[number]


def k_from(request: _Counted) -> int | None:
    """How many a request asks for; None where it does not say."""
    return request.k if request.HasField("k") else None


def filter_from(message: query_pb2.ImageFilter) -> ImageFilter:
    """Which images a request is about."""
    return ImageFilter(
        labels=tuple(message.labels),
        rows=tuple(message.rows),
        has_box=message.has_box if message.HasField("has_box") else None,
        box_labels=tuple(message.box_labels),
    )


def order_from(number: int) -> Order:
    """From which end images are ranked."""
    if number not in _ORDERS:
        raise InvalidArgumentError(f"order is {number}; it must be ORDER_TOP or ORDER_BOTTOM.")
    return _ORDERS[number]


def percentiles_from(number: int) -> bool:
    """Whether a request ranks channels by percentile."""
    measures: Mapping[int, bool] = {
        query_pb2.MEASURE_UNSPECIFIED: False,
        query_pb2.MEASURE_VALUE: False,
        query_pb2.MEASURE_PERCENTILE: True,
    }
    if number not in measures:
        raise InvalidArgumentError(
            f"measure is {number}; it must be MEASURE_VALUE or MEASURE_PERCENTILE."
        )
    return measures[number]


def in_bytes_from(number: int) -> bool:
    """Whether maps are asked for with a byte a value."""
    known: Mapping[int, bool] = {
        query_pb2.MAP_ENCODING_UNSPECIFIED: False,
        query_pb2.MAP_ENCODING_FLOAT16: False,
        query_pb2.MAP_ENCODING_UINT8: True,
    }
    if number not in known:
        raise InvalidArgumentError(
            f"encoding is {number}; it must be MAP_ENCODING_FLOAT16 or MAP_ENCODING_UINT8."
        )
    return known[number]


def change_from(number: int) -> Change:
    """What channels of two indexes are ranked by."""
    if number not in _CHANGES:
        raise InvalidArgumentError(
            f"measure is {number}; it must be CHANGE_MEASURE_EFFECT, CHANGE_MEASURE_DIFFERENCE or "
            "CHANGE_MEASURE_CORRELATION."
        )
    return _CHANGES[number]


def box_measure_from(number: int) -> Measure:
    """What images are ranked by that are held against boxes."""
    if number not in _BOX_MEASURES:
        raise InvalidArgumentError(
            f"measure is {number}; it must be BOX_MEASURE_CONTRAST, BOX_MEASURE_INSIDE or "
            "BOX_MEASURE_AUC."
        )
    return _BOX_MEASURES[number]


def direction_from(message: query_pb2.Direction) -> Direction | None:
    """A direction in a layer's activation space; None where none is given."""
    match message.WhichOneof("direction"):
        case "weights":
            return Weights(message.weights.channels, message.weights.weights)
        case "vector":
            return Vector(message.vector)
        case "name":
            return Named(message.name)
    return None


def along_from(request: query_pb2.TopImagesAlongDirectionRequest) -> directions.Question:
    """How a request wants images ranked along a direction."""
    if request.measure not in _DIRECTION_MEASURES:
        raise InvalidArgumentError(
            f"measure is {request.measure}; it must be DIRECTION_MEASURE_PROJECTION or "
            "DIRECTION_MEASURE_COSINE."
        )
    return directions.Question(
        measure=_DIRECTION_MEASURES[request.measure],
        pooling=pooling_from(request.pooling),
        k=k_from(request),
        asked=filter_from(request.filter),
    )


def question_from(
    request: query_pb2.TopImagesRequest | query_pb2.TopImagesOfChannelsRequest,
) -> Question:
    """How a request wants the images of a channel ranked."""
    return Question(
        pooling=pooling_from(request.pooling),
        k=k_from(request),
        asked=filter_from(request.filter),
        order=order_from(request.order),
        band=(request.band.low, request.band.high) if request.HasField("band") else None,
        distinct=request.distinct,
    )


def where_from(request: query_pb2.TopChannelsRequest) -> Where:
    """Which part of an image a request is about."""
    match request.WhichOneof("where"):
        case "patch":
            return Patch(request.patch.y, request.patch.x)
        case "rectangle":
            given = request.rectangle
            return (given.x0, given.y0, given.x1, given.y1)
        case "box":
            return BoxNumber(request.box)
    return pooling_from(request.pooling)


def analysis_from(request: query_pb2.AnalyzeImageRequest) -> AnalysisQuestion:
    """What is asked about a picture that is brought along."""
    return AnalysisQuestion(
        layers=request.layers,
        pooling=pooling_from(request.pooling),
        percentiles=percentiles_from(request.measure),
        channels=request.channels if request.HasField("channels") else None,
        neighbours=request.neighbours if request.HasField("neighbours") else None,
        maps=[(each.layer, each.channel) for each in request.maps],
        include_maps=request.include_maps,
    )
