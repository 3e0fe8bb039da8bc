"""Wrong requests: the right status, one sentence, and never UNKNOWN or INTERNAL."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import Synthetic

from vitscope.server.errors import QueryError
from vitscope.server.status import CODES
from vitscope.store.errors import DamagedIndexError, NotReadError
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

STREAMS = ("GetPatchMaps", "GetImages", "TopImagesOfChannels", "GetScores")
LAYER = "blocks.0.mlp"
WITHOUT_CLS = "stages.1.blocks.0.mlp"
LAST = 2**31 - 1
FAR = 2**63 - 1

INVALID = StatusCode.INVALID_ARGUMENT
MISSING = StatusCode.NOT_FOUND
NOT_KEPT = StatusCode.FAILED_PRECONDITION


def ask(stub: ActivationServiceStub, request: Any) -> list[Any]:
    """The reply to a request, or all replies of its stream."""
    name = type(request).__name__.removesuffix("Request")
    answer = getattr(stub, name)(request, timeout=60)
    return list(answer) if name in STREAMS else [answer]


def refusal(stub: ActivationServiceStub, request: Any) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask(stub, request)
    error = caught.value
    assert isinstance(error, grpc.Call)
    return error.code(), error.details() or ""


def check_sentence(details: str) -> None:
    """One sentence with a mend, that tells nothing of the server's files or code."""
    # A hint may be a question.
    assert details.endswith((".", "?"))
    assert "\n" not in details
    assert "Traceback" not in details
    assert "/" not in details
    assert len(details) < 400


def fields_of(**fields: Any) -> dict[str, Any]:
    return fields


def top(**fields: Any) -> pb.TopImagesRequest:
    return pb.TopImagesRequest(**fields_of(layer=LAYER, channel=4, k=3) | fields)


def similar(**fields: Any) -> pb.SimilarImagesRequest:
    return pb.SimilarImagesRequest(**fields_of(layer=LAYER, row=1, k=3) | fields)


def several(*channels: int, **fields: Any) -> pb.TopImagesOfChannelsRequest:
    return pb.TopImagesOfChannelsRequest(**fields_of(layer=LAYER, channels=channels, k=3) | fields)


def statistics(*channels: int, **fields: Any) -> pb.GetChannelStatisticsRequest:
    return pb.GetChannelStatisticsRequest(**fields_of(layer=LAYER, channels=channels) | fields)


def patches(**fields: Any) -> pb.TopPatchesRequest:
    return pb.TopPatchesRequest(**fields_of(layer=LAYER, channel=4, k=3) | fields)


def channels(**fields: Any) -> pb.TopChannelsRequest:
    return pb.TopChannelsRequest(**fields_of(row=1, layers=[LAYER], k=3) | fields)


def by_box(**fields: Any) -> pb.TopImagesByBoxRequest:
    return pb.TopImagesByBoxRequest(**fields_of(layer=LAYER, channel=4) | fields)


def like(**fields: Any) -> pb.SimilarChannelsRequest:
    return pb.SimilarChannelsRequest(**fields_of(layer=LAYER, channel=4, k=3) | fields)


def only(**fields: Any) -> pb.ImageFilter:
    return pb.ImageFilter(**fields)


def band(low: float, high: float) -> pb.QuantileBand:
    return pb.QuantileBand(low=low, high=high)


def rectangle(*corners: float) -> pb.Rectangle:
    return pb.Rectangle(x0=corners[0], y0=corners[1], x1=corners[2], y1=corners[3])


def maps(count: int = 1, **fields: Any) -> pb.GetPatchMapsRequest:
    selector = pb.PatchMapSelector(**fields_of(layer="blocks.1.mlp", channel=1, row=1) | fields)
    return pb.GetPatchMapsRequest(maps=[selector] * count)


def images(*rows: int, index: str = "", names: bool = False) -> pb.GetImagesRequest:
    return pb.GetImagesRequest(index=index, rows=rows, without_pictures=names)


def scores(*channels: int, **fields: Any) -> pb.GetScoresRequest:
    return pb.GetScoresRequest(**fields_of(layer=LAYER, channels=channels) | fields)


TABLE: dict[str, tuple[Any, StatusCode, str]] = {
    "top: unknown layer": (top(layer="blocks.7.attn"), MISSING, "layer"),
    "top: another group": (top(layer="rows"), MISSING, "layer"),
    "top: empty layer": (top(layer=""), INVALID, "layer"),
    "top: channel -1": (top(channel=-1), MISSING, "channel"),
    "top: channel too large": (top(channel=11), MISSING, "channel"),
    "top: channel far too large": (top(channel=LAST), MISSING, "channel"),
    "top: k 0": (top(k=0), INVALID, "k is 0"),
    "top: k -1": (top(k=-1), INVALID, "k is -1"),
    "top: k above valid images": (top(k=66), INVALID, "k is 66"),
    "top: k far too large": (top(k=LAST), INVALID, "k is"),
    "top: unknown pooling": (top(pooling=9), INVALID, "pooling"),
    "top: negative pooling": (top(pooling=-1), INVALID, "pooling"),
    "top: no class token": (top(layer=WITHOUT_CLS, pooling=3), NOT_KEPT, "pooling"),
    "top: unknown index": (top(index="aquarium"), MISSING, "index"),
    "top: long layer": (top(layer="я" * 100_000), MISSING, "layer"),
    "top: unknown order": (top(order=9), INVALID, "order is 9"),
    "top: a band upside down": (top(band=band(0.5, 0.25)), INVALID, "band"),
    "top: a band beyond 1": (top(band=band(0.5, 1.5)), INVALID, "band"),
    "top: a band of NaN": (top(band=band(float("nan"), 1)), INVALID, "band"),
    "top: distinct from the bottom": (top(distinct=True, order=2), INVALID, "distinct"),
    "top: distinct of a band": (top(distinct=True, band=band(0, 1)), INVALID, "distinct"),
    "top: unknown label": (top(filter=only(labels=["foxx"])), MISSING, "did you mean 'fox'"),
    "top: a label like none": (top(filter=only(labels=["я" * 9999])), MISSING, "filter.labels"),
    "top: unknown box label": (top(filter=only(box_labels=["x"])), MISSING, "filter.box_labels"),
    "top: filtered row -1": (top(filter=only(rows=[1, -1])), MISSING, "filter.rows"),
    "top: filtered row too large": (top(filter=only(rows=[70, 1])), MISSING, "filter.rows"),
    "top: too many rows": (top(filter=only(rows=[1] * 100_001)), INVALID, "filter.rows"),
    "several: channel -1": (several(1, -1), MISSING, "channel"),
    "several: too many": (several(*[1] * 12), INVALID, "channels has 12"),
    "several: unknown layer": (several(1, layer="x"), MISSING, "layer"),
    "several: k 0": (several(1, k=0), INVALID, "k is 0"),
    "several: no class token": (several(layer=WITHOUT_CLS, pooling=3), NOT_KEPT, "pooling"),
    "several: unknown order": (several(1, order=-1), INVALID, "order"),
    "statistics: channel too large": (statistics(11), MISSING, "channel"),
    "statistics: unknown pooling": (statistics(pooling=9), INVALID, "pooling"),
    "statistics: no class token": (statistics(layer=WITHOUT_CLS, pooling=3), NOT_KEPT, "pooling"),
    "patches: channel -1": (patches(channel=-1), MISSING, "channel"),
    "patches: k 0": (patches(k=0), INVALID, "k is 0"),
    "patches: k above all patches": (patches(k=65 * 15 + 1), INVALID, "k is 976"),
    "patches: more than kept": (patches(k=60), NOT_KEPT, "not the maps of all these were kept"),
    "patches: of other images": (patches(filter=only(rows=range(1, 9))), NOT_KEPT, "filter"),
    "channels: row -1": (channels(row=-1), MISSING, "row"),
    "channels: invalid row": (channels(row=17), NOT_KEPT, "row 17 is an invalid image"),
    "channels: unknown layer": (channels(layers=[LAYER, "x"]), MISSING, "layer"),
    "channels: empty layer": (channels(layers=[""]), INVALID, "layer"),
    "channels: k above channels": (channels(k=12), INVALID, "k is 12"),
    "channels: unknown pooling": (channels(pooling=9), INVALID, "pooling"),
    "channels: no class token": (channels(layers=[], pooling=3), NOT_KEPT, "pooling"),
    "channels: unknown measure": (channels(measure=9), INVALID, "measure"),
    "channels: a patch not kept": (channels(patch=pb.PatchPlace(y=1, x=1)), NOT_KEPT, "layers"),
    "channels: a rectangle not kept": (
        channels(rectangle=rectangle(1, 1, 4, 4)),
        NOT_KEPT,
        "layers",
    ),
    "channels: no rectangle": (channels(rectangle=rectangle(4, 1, 1, 4)), INVALID, "rectangle"),
    "channels: a rectangle of NaN": (
        channels(rectangle=rectangle(float("nan"), 1, 4, 4)),
        INVALID,
        "rectangle",
    ),
    "channels: percentile of a rectangle": (
        channels(rectangle=rectangle(1, 1, 4, 4), measure=2),
        INVALID,
        "measure",
    ),
    "channels: no such box": (channels(box=0), MISSING, "box"),
    "boxes: there are none": (
        pb.GetBoxScoresRequest(layer=LAYER),
        NOT_KEPT,
        "no labelled boxes",
    ),
    "boxes: unknown layer": (pb.GetBoxScoresRequest(layer="x"), MISSING, "layer"),
    "boxes: channel -1": (pb.GetBoxScoresRequest(layer=LAYER, channels=[-1]), MISSING, "channel"),
    "by box: there are none": (
        pb.TopImagesByBoxRequest(layer=LAYER, channel=1),
        NOT_KEPT,
        "no labelled boxes",
    ),
    "by box: k 0": (by_box(k=0), INVALID, "k is 0"),
    "by box: unknown measure": (
        by_box(measure=9),
        INVALID,
        "measure",
    ),
    "by box: unknown order": (by_box(order=9), INVALID, "order"),
    "like: channel too large": (like(channel=11), MISSING, "channel"),
    "like: k above the others": (like(k=11), INVALID, "k is 11"),
    "like: unknown layer among those searched": (like(layers=["x"]), MISSING, "layer"),
    "similar: unknown layer": (similar(layer="x"), MISSING, "layer"),
    "similar: empty layer": (similar(layer=""), INVALID, "layer"),
    "similar: row -1": (similar(row=-1), MISSING, "row"),
    "similar: row too large": (similar(row=70), MISSING, "row"),
    "similar: row far too large": (similar(row=FAR), MISSING, "row"),
    "similar: invalid row": (similar(row=17), NOT_KEPT, "row 17 is an invalid image"),
    "similar: k 0": (similar(k=0), INVALID, "k is 0"),
    "similar: k -1": (similar(k=-1), INVALID, "k is -1"),
    "similar: k as many as valid images": (similar(k=65), INVALID, "k is 65"),
    "similar: unknown index": (similar(index="aquarium"), MISSING, "index"),
    "maps: none": (maps(0), INVALID, "maps is empty"),
    "maps: too many": (maps(4097), INVALID, "maps has 4097"),
    "maps: unknown layer": (maps(layer="x"), MISSING, "layer"),
    "maps: empty layer": (maps(layer=""), INVALID, "layer"),
    "maps: channel -1": (maps(channel=-1), MISSING, "channel"),
    "maps: channel too large": (maps(channel=3), MISSING, "channel"),
    "maps: row -1": (maps(row=-1), MISSING, "row"),
    "maps: row too large": (maps(row=70), MISSING, "row"),
    "maps: invalid row": (maps(row=0), NOT_KEPT, "row 0 is an invalid image"),
    "maps: unknown encoding": (
        pb.GetPatchMapsRequest(encoding=9),  # type: ignore[arg-type]
        INVALID,
        "encoding is 9",
    ),
    "maps: too large a grid": (
        pb.GetPatchMapsRequest(
            grids=[pb.PatchMapGrid(layer="blocks.1.mlp", rows=[1] * 2000, channels=[0, 1, 2])]
        ),
        INVALID,
        "maps and grids are 6000 maps",
    ),
    "maps: a grid without rows": (
        pb.GetPatchMapsRequest(grids=[pb.PatchMapGrid(layer=LAYER, channels=[1])]),
        INVALID,
        "maps is empty",
    ),
    "maps: a grid of another layer": (
        pb.GetPatchMapsRequest(grids=[pb.PatchMapGrid(layer="x", rows=[1], channels=[1])]),
        MISSING,
        "layer",
    ),
    "images: none": (images(), INVALID, "rows is empty"),
    "images: too many": (images(*[1] * 1025), INVALID, "rows has 1025"),
    "images: too many names": (images(*[1] * 100_001, names=True), INVALID, "rows has 100001"),
    "images: row -1": (images(1, -1), MISSING, "row"),
    "images: row too large": (images(1, 70), MISSING, "row"),
    "images: unknown index": (images(1, index="aquarium"), MISSING, "index"),
    "scores: unknown layer": (scores(layer="x"), MISSING, "layer"),
    "scores: empty layer": (scores(layer=""), INVALID, "layer"),
    "scores: channel -1": (scores(1, -1), MISSING, "channels"),
    "scores: channel too large": (scores(11), MISSING, "channels"),
    "scores: too many": (scores(*[1] * 12), INVALID, "channels has 12"),
    "scores: unknown pooling": (scores(pooling=9), INVALID, "pooling"),
    "scores: no class token": (scores(layer=WITHOUT_CLS, pooling=3), NOT_KEPT, "pooling"),
    "scores: unknown index": (scores(index="aquarium"), MISSING, "index"),
    "index: unknown": (pb.GetIndexRequest(index="aquarium"), MISSING, "index"),
    "index: a path": (pb.GetIndexRequest(index=".."), MISSING, "index"),
}


@pytest.mark.parametrize("name", TABLE)
def test_wrong_requests(stub: ActivationServiceStub, name: str) -> None:
    request, code, word = TABLE[name]
    found, details = refusal(stub, request)
    assert found == code
    assert word in details
    check_sentence(details)


def test_the_largest_allowed_requests_are_answered(stub: ActivationServiceStub) -> None:
    assert len(ask(stub, top(k=65))[0].images) == 65
    assert len(ask(stub, similar(k=64))[0].images) == 64
    assert sum(len(reply.maps.rows) for reply in ask(stub, maps(4096))) == 4096
    assert sum(len(reply.images) for reply in ask(stub, images(*[1] * 1024))) == 1024
    names = ask(stub, images(*[1] * 100_000, names=True))
    assert sum(len(reply.images) for reply in names) == 100_000
    assert len(ask(stub, scores(*[1] * 11))[0].channels) == 11


def test_a_map_that_was_not_kept(synthetic: Synthetic, stub: ActivationServiceStub) -> None:
    record = synthetic.layers[LAYER]
    kept = {
        row
        for pooling in record.poolings
        for row, _ in synthetic.ranking(LAYER, pooling, 4)[: record.top_k]
    }
    others = [row for row in np.flatnonzero(synthetic.valid).tolist() if row not in kept]
    assert len(others) > 40
    for row in others:
        code, details = refusal(stub, maps(layer=LAYER, channel=4, row=row))
        assert code == NOT_KEPT
        assert f"row {row} on channel 4 of {LAYER}" in details
        check_sentence(details)
    # One of them spoils a whole request, before any map is sent.
    good = pb.PatchMapSelector(layer=LAYER, channel=4, row=min(kept))
    bad = pb.PatchMapSelector(layer=LAYER, channel=4, row=others[0])
    assert refusal(stub, pb.GetPatchMapsRequest(maps=[good, bad, good]))[0] == NOT_KEPT


@pytest.mark.parametrize(
    "method", ["ListIndexes", "GetIndex", "TopImages", "SimilarImages", "TopChannels"]
)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
def test_bytes_that_are_no_message(channel: grpc.Channel, method: str, data: bytes) -> None:
    call: Any = channel.unary_unary(f"/vitscope.v1.ActivationService/{method}")
    if method == "ListIndexes" and data[0] == 0x0A and data[1] == 2:
        # An unknown field of a message without fields is passed over.
        assert pb.ListIndexesResponse.FromString(call(data, timeout=60)).indexes
        return
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=60)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == INVALID
    check_sentence(caught.value.details() or "")


@pytest.mark.parametrize("method", STREAMS)
def test_bytes_that_are_no_message_on_a_stream(channel: grpc.Channel, method: str) -> None:
    call: Any = channel.unary_stream(f"/vitscope.v1.ActivationService/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(b"\xff\xff\xff", timeout=60))
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == INVALID
    check_sentence(caught.value.details() or "")


def test_a_method_that_is_not_there(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary("/vitscope.v1.ActivationService/Nothing")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=60)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == StatusCode.UNIMPLEMENTED


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
        pb.TopPatchesRequest, index=INDEXES, layer=LAYERS, channel=INT32, k=COUNTS, filter=FILTERS
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
        # Which maps are needed is the oracle's affair in test_questions.
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


def test_every_error_of_a_request_has_its_status() -> None:
    def tree(kind: type[QueryError]) -> list[type[QueryError]]:
        return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]

    raised = [kind for kind in tree(QueryError) if kind is not QueryError]
    assert len(raised) >= 3
    assert set(CODES) == {*raised, DamagedIndexError, NotReadError}
    forbidden = {StatusCode.OK, StatusCode.UNKNOWN, StatusCode.INTERNAL}
    assert not forbidden & set(CODES.values())


def test_calls_at_the_same_time_do_not_mix(
    synthetic: Synthetic, stub: ActivationServiceStub
) -> None:
    requests = [top(channel=channel, k=k) for channel in range(11) for k in (3, 20, 65)] * 3
    calls: list[Callable[[], pb.TopImagesResponse]] = [
        stub.TopImages.future(request, timeout=60).result for request in requests
    ]
    for request, result in zip(requests, calls, strict=True):
        found = [(image.row, image.score) for image in result().images]
        assert found == synthetic.ranking(LAYER, "mean", request.channel)[: request.k]
