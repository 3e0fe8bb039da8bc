"""Generated requests: always a predicted status, never UNKNOWN or INTERNAL."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server.refusals import (
    FAR,
    INVALID,
    LAST,
    LAYER,
    MISSING,
    NOT_KEPT,
    WITHOUT_CLS,
    ask,
    rectangle,
    refusal,
)
from synthetic import Synthetic

from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

INDEXES = st.sampled_from(["", "", "", "zoo"]) | st.text(max_size=8)
LAYERS = st.sampled_from([LAYER, WITHOUT_CLS, "blocks.1.mlp"] * 2 + [""]) | st.text(max_size=30)
SMALL = st.integers(-2, 30)
INT32 = SMALL | st.integers(-(2**31), LAST)
INT64 = st.integers(-2, 75) | st.integers(-(2**63), FAR)
COUNTS = st.none() | st.integers(-1, 70) | st.integers(-(2**31), LAST)

# Every map of this layer is kept: four random selectors hardly ever all have an answer.
KEPT = st.builds(
    pb.PatchMapSelector,
    layer=st.just("blocks.1.mlp"),
    channel=st.integers(0, 1),
    row=st.sampled_from([1, 2, 3, 40]),
)

FILTERS = st.none() | st.builds(
    pb.ImageFilter,
    labels=st.lists(st.sampled_from(["fox", "café"]) | st.text(max_size=3), max_size=2),
    rows=st.lists(INT64, max_size=3),
    has_box=st.none() | st.booleans(),
    box_labels=st.lists(st.text(max_size=3), max_size=1),
)
LEVELS = st.floats(0, 1) | st.floats()
RANKED: dict[str, st.SearchStrategy[Any]] = {
    "include_maps": st.booleans(),
    "filter": FILTERS,
    "order": st.integers(0, 2) | INT32,
    "band": st.none() | st.builds(pb.QuantileBand, low=LEVELS, high=LEVELS),
    "distinct": st.booleans(),
}


def with_part(request: pb.TopChannelsRequest) -> st.SearchStrategy[pb.TopChannelsRequest]:
    """The request about all of an image, a patch, a rectangle or a box."""
    corner = st.floats(0, 10, width=32) | st.floats(width=32)
    parts: list[st.SearchStrategy[dict[str, Any]]] = [
        st.just({}),
        st.fixed_dictionaries({"pooling": st.integers(0, 3) | INT32}),
        st.fixed_dictionaries({"patch": st.builds(pb.PatchPlace, y=INT32, x=INT32)}),
        st.fixed_dictionaries({"rectangle": st.builds(rectangle, *[corner] * 4)}),
        st.fixed_dictionaries({"box": INT32}),
    ]

    def join(part: dict[str, Any]) -> pb.TopChannelsRequest:
        joined = pb.TopChannelsRequest(**part)
        joined.MergeFrom(request)
        return joined

    return st.one_of(parts).map(join)


REQUESTS: dict[str, st.SearchStrategy[Any]] = {
    "ListIndexes": st.builds(pb.ListIndexesRequest),
    "GetIndex": st.builds(pb.GetIndexRequest, index=INDEXES),
    "TopImages": st.builds(
        pb.TopImagesRequest,
        index=INDEXES,
        layer=LAYERS,
        channel=INT32,
        pooling=st.integers(0, 3) | INT32,
        k=COUNTS,
        **RANKED,
    ),
    "TopImagesOfChannels": st.builds(
        pb.TopImagesOfChannelsRequest,
        index=INDEXES,
        layer=LAYERS,
        channels=st.lists(INT32, max_size=3),
        k=COUNTS,
        **RANKED,
    ),
    "GetChannelStatistics": st.builds(
        pb.GetChannelStatisticsRequest,
        index=INDEXES,
        layer=LAYERS,
        pooling=st.integers(0, 3) | INT32,
        channels=st.lists(INT32, max_size=3),
    ),
    "TopPatches": st.builds(
        pb.TopPatchesRequest,
        index=INDEXES,
        layer=LAYERS,
        channel=st.integers(0, 2) | INT32,
        k=COUNTS,
        filter=st.just(pb.ImageFilter()) | FILTERS,
    ),
    "TopChannels": st.builds(
        pb.TopChannelsRequest,
        index=INDEXES,
        row=INT64,
        layers=st.lists(LAYERS, max_size=2),
        measure=st.integers(0, 2) | INT32,
        k=COUNTS,
    ).flatmap(with_part),
    "SimilarChannels": st.builds(
        pb.SimilarChannelsRequest,
        index=INDEXES,
        layer=LAYERS,
        channel=INT32,
        k=COUNTS,
        layers=st.lists(LAYERS, max_size=2),
    ),
    "GetBoxScores": st.builds(
        pb.GetBoxScoresRequest,
        index=INDEXES,
        layer=LAYERS,
        channels=st.lists(INT32, max_size=3),
        box_labels=st.lists(st.text(max_size=3), max_size=1),
        filter=FILTERS,
    ),
    "TopImagesByBox": st.builds(
        pb.TopImagesByBoxRequest,
        index=INDEXES,
        layer=LAYERS,
        channel=INT32,
        box_labels=st.lists(st.text(max_size=3), max_size=1),
        filter=FILTERS,
        measure=st.integers(0, 3) | INT32,
        order=st.integers(0, 2) | INT32,
        k=COUNTS,
    ),
    "SimilarImages": st.builds(
        pb.SimilarImagesRequest, index=INDEXES, layer=LAYERS, row=INT64, k=COUNTS
    ),
    "GetPatchMaps": st.builds(pb.GetPatchMapsRequest, maps=st.lists(KEPT, min_size=1, max_size=4))
    | st.builds(
        pb.GetPatchMapsRequest,
        index=INDEXES,
        maps=st.lists(
            st.builds(pb.PatchMapSelector, layer=LAYERS, channel=INT32, row=INT64), max_size=4
        ),
    ),
    "GetImages": st.builds(
        pb.GetImagesRequest,
        index=INDEXES,
        rows=st.lists(INT64, max_size=5),
        without_pictures=st.booleans(),
    ),
    "GetScores": st.builds(
        pb.GetScoresRequest,
        index=INDEXES,
        layer=LAYERS,
        pooling=st.integers(0, 3) | INT32,
        channels=st.lists(INT32, max_size=3),
    ),
}

Fault = tuple[bool, StatusCode]
MANY_CHANNELS = (
    pb.TopImagesOfChannelsRequest
    | pb.GetChannelStatisticsRequest
    | pb.GetBoxScoresRequest
    | pb.GetScoresRequest
)
EXAMPLES = int(os.environ.get("VITSCOPE_REFUSALS", "250"))
"""Requests of each kind."""


def faults(synthetic: Synthetic, request: Any) -> set[StatusCode]:
    """Statuses of all that is wrong with a request, from the words of the protocol alone."""
    found: list[Fault] = []
    if hasattr(request, "index"):
        found.append((request.index not in ("", "zoo"), MISSING))
    if isinstance(request, pb.TopImagesRequest | pb.TopImagesOfChannelsRequest):
        found += layer_faults(synthetic, request.layer)
        found += pooling_faults(request.layer, request.pooling)
        found += filter_faults(request.filter)
        found.append((request.HasField("k") and not 1 <= request.k <= 65, INVALID))
        found.append((not 0 <= request.order <= 2, INVALID))
        low, high = request.band.low, request.band.high
        found.append((request.HasField("band") and not 0 <= low <= high <= 1, INVALID))
        plain = request.order != pb.ORDER_BOTTOM and not request.HasField("band")
        found.append((request.distinct and not plain, INVALID))
    if isinstance(request, pb.TopImagesRequest | pb.TopPatchesRequest | pb.SimilarChannelsRequest):
        found += channel_faults(synthetic, request)
    if isinstance(request, pb.GetChannelStatisticsRequest | pb.GetScoresRequest):
        found += layer_faults(synthetic, request.layer)
        found += pooling_faults(request.layer, request.pooling)
    if isinstance(request, pb.GetBoxScoresRequest | pb.TopImagesByBoxRequest):
        found += layer_faults(synthetic, request.layer)
        found += filter_faults(request.filter)
        # The index has no boxes.
        found += [(True, NOT_KEPT), (bool(request.box_labels), MISSING)]
    if isinstance(request, pb.TopImagesByBoxRequest):
        found += channel_faults(synthetic, request)
        found += [(not 0 <= request.measure <= 3, INVALID), (not 0 <= request.order <= 2, INVALID)]
        found.append((request.HasField("k") and not 1 <= request.k <= 65, INVALID))
    if isinstance(request, MANY_CHANNELS):
        layer = synthetic.layers.get(request.layer)
        if layer is not None:
            found += [(not 0 <= one < layer.channels, MISSING) for one in request.channels]
    if isinstance(request, pb.TopPatchesRequest):
        found += layer_faults(synthetic, request.layer)
        found += filter_faults(request.filter)
        layer = synthetic.layers.get(request.layer)
        cells = layer.tokens.height * layer.tokens.width if layer else 1
        found.append((request.HasField("k") and not 1 <= request.k <= 65 * cells, INVALID))
        # Which maps are needed is the oracle's affair in test_image_questions.
        if not any(wrong for wrong, _ in found):
            found.append((not patches_are_kept(synthetic, request), NOT_KEPT))
    if isinstance(request, pb.TopChannelsRequest):
        found += row_faults(synthetic, request.row)
        for name in request.layers:
            found += layer_faults(synthetic, name)
        found += part_faults(synthetic, request)
        named = [synthetic.layers[name] for name in set(request.layers) & set(synthetic.layers)]
        most = sum(layer.channels for layer in named or synthetic.layers.values())
        found.append((request.HasField("k") and not 1 <= request.k <= most, INVALID))
        found.append((not 0 <= request.measure <= 2, INVALID))
    if isinstance(request, pb.SimilarChannelsRequest):
        for name in (request.layer, *request.layers):
            found += layer_faults(synthetic, name)
        known = set(request.layers or [request.layer]) & set(synthetic.layers)
        most = sum(synthetic.layers[name].channels for name in known) - (request.layer in known)
        found.append((request.HasField("k") and not 1 <= request.k <= most, INVALID))
    if isinstance(request, pb.SimilarImagesRequest):
        found += layer_faults(synthetic, request.layer)
        found += row_faults(synthetic, request.row)
        found.append((request.HasField("k") and not 1 <= request.k <= 64, INVALID))
    if isinstance(request, pb.GetPatchMapsRequest):
        found.append((not request.maps, INVALID))
        for selector in request.maps:
            found += layer_faults(synthetic, selector.layer)
            found += channel_faults(synthetic, selector)
            found += row_faults(synthetic, selector.row)
            if not any(wrong for wrong, _ in found):
                found.append((not is_kept(synthetic, selector), NOT_KEPT))
    if isinstance(request, pb.GetImagesRequest):
        found.append((not request.rows, INVALID))
        found += [(not 0 <= row < 70, MISSING) for row in request.rows]
    return {code for wrong, code in found if wrong}


def layer_faults(synthetic: Synthetic, layer: str) -> list[Fault]:
    return [(not layer, INVALID), (bool(layer) and layer not in synthetic.layers, MISSING)]


def channel_faults(synthetic: Synthetic, request: Any) -> list[Fault]:
    layer = synthetic.layers.get(request.layer)
    return [(layer is not None and not 0 <= request.channel < layer.channels, MISSING)]


def pooling_faults(layer: str, pooling: int) -> list[Fault]:
    return [
        (not 0 <= pooling <= 3, INVALID),
        (layer == WITHOUT_CLS and pooling == 3, NOT_KEPT),
    ]


def filter_faults(where: pb.ImageFilter) -> list[Fault]:
    """The index has no boxes."""
    labels = {"fox", "café", "белка", "🦊 fennec"}
    return [
        (bool(set(where.labels) - labels), MISSING),
        (any(not 0 <= row < 70 for row in where.rows), MISSING),
        (bool(where.box_labels), MISSING),
        (where.HasField("has_box") and not where.has_box and bool(where.box_labels), INVALID),
    ]


def part_faults(synthetic: Synthetic, request: pb.TopChannelsRequest) -> list[Fault]:
    """No layer keeps all its activations, and no image has a box."""
    part = request.WhichOneof("where")
    if part == "box":
        return [(True, MISSING)]
    if part in ("patch", "rectangle"):
        given = request.rectangle
        whole = given.x0 < given.x1 and given.y0 < given.y1
        finite = all(map(math.isfinite, (given.x0, given.y0, given.x1, given.y1)))
        return [
            (True, NOT_KEPT),
            (part == "rectangle" and not (whole and finite), INVALID),
            (part == "rectangle" and request.measure == 2, INVALID),
        ]
    asked = request.layers or synthetic.layers
    return [fault for layer in asked for fault in pooling_faults(layer, request.pooling)]


def patches_are_kept(synthetic: Synthetic, request: pb.TopPatchesRequest) -> bool:
    where, layer = request.filter, synthetic.layers[request.layer]
    passing = [
        row
        for row, _ in synthetic.ranking(layer.name, "max", request.channel)
        if (not where.rows or row in where.rows)
        and (not where.labels or synthetic.records[row].label in where.labels)
        and not (where.HasField("has_box") and where.has_box)
    ]
    count = request.k if request.HasField("k") else 20
    selectors = [
        pb.PatchMapSelector(layer=layer.name, channel=request.channel, row=row)
        for row in passing[:count]
    ]
    return all(is_kept(synthetic, selector) for selector in selectors)


def row_faults(synthetic: Synthetic, row: int) -> list[Fault]:
    inside = 0 <= row < 70
    return [(not inside, MISSING), (inside and not synthetic.records[row].valid, NOT_KEPT)]


def is_kept(synthetic: Synthetic, selector: pb.PatchMapSelector) -> bool:
    layer = synthetic.layers[selector.layer]
    return any(
        selector.row == row
        for pooling in layer.poolings
        for row, _ in synthetic.ranking(layer.name, pooling, selector.channel)[: layer.top_k]
    )


@pytest.mark.parametrize("method", REQUESTS)
def test_random_requests_get_the_status_they_deserve(
    synthetic: Synthetic, stub: ActivationServiceStub, method: str
) -> None:
    """Any answer but a predicted one fails, UNKNOWN and INTERNAL too."""
    answered: list[bool] = []

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(REQUESTS[method])
    def sweep(request: Any) -> None:
        expected = faults(synthetic, request)
        answered.append(not expected)
        if not expected:
            ask(stub, request)
            return
        code, details = refusal(stub, request)
        assert code in expected, (code, details)
        assert details.endswith((".", "?"))
        assert str(synthetic.path) not in details

    sweep()
    assert (True in answered) == (method not in ("GetBoxScores", "TopImagesByBox"))
    if method != "ListIndexes":
        assert False in answered
