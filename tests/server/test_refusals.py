"""Wrong requests: the right status, one sentence, and never UNKNOWN or INTERNAL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from server.refusals import (
    FAR,
    INVALID,
    LAST,
    LAYER,
    MISSING,
    NOT_KEPT,
    STREAMS,
    WITHOUT_CLS,
    ask,
    band,
    by_box,
    channels,
    check_sentence,
    images,
    like,
    maps,
    only,
    patches,
    rectangle,
    refusal,
    scores,
    several,
    similar,
    statistics,
    top,
)
from synthetic import Synthetic

from vitscope.server.errors import QueryError
from vitscope.server.status import CODES
from vitscope.store.errors import DamagedIndexError, NotReadError
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

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
