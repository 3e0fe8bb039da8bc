"""Wrong requests about own pictures: the right status, one sentence, never UNKNOWN or INTERNAL."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lives import KEPT, OTHER, PICTURES, LiveIndex
from pictures import BAD, jpeg, noise
from PIL import Image

from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

CHANNELS = 192
"""Of each layer of the test model."""
GOOD = jpeg(noise(3))
LAST = 2**31 - 1

INVALID = StatusCode.INVALID_ARGUMENT
MISSING = StatusCode.NOT_FOUND
NOT_KEPT = StatusCode.FAILED_PRECONDITION


@pytest.fixture(scope="module")
def stub(live_server: str) -> Iterator[ActivationServiceStub]:
    with grpc.insecure_channel(live_server) as channel:
        yield ActivationServiceStub(channel)


def own(**fields: Any) -> pb.AnalyzeImageRequest:
    given: dict[str, Any] = {"picture": GOOD}
    return pb.AnalyzeImageRequest(**given | fields)


def refusal(stub: ActivationServiceStub, request: pb.AnalyzeImageRequest) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        stub.AnalyzeImage(request, timeout=60)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


def check_sentence(details: str) -> None:
    assert details.endswith((".", "?"))
    assert "\n" not in details
    assert "Traceback" not in details
    assert "/" not in details
    assert len(details) < 400


def png(width: int, height: int) -> bytes:
    """An empty picture, which takes few bytes whatever its size."""
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


def selector(layer: str, channel: int) -> pb.ChannelSelector:
    return pb.ChannelSelector(layer=layer, channel=channel)


TABLE: dict[str, tuple[pb.AnalyzeImageRequest, StatusCode, str]] = {
    "no picture": (own(picture=b""), INVALID, "picture is empty"),
    "too many bytes": (own(picture=bytes((3 << 20) + 1)), INVALID, "picture has 3145729 bytes"),
    "too many pixels": (own(picture=png(9600, 9600)), INVALID, "picture: the image has more than"),
    "a thread": (own(picture=png(2000, 2)), INVALID, "picture: the image data is broken"),
    "half of a picture": (own(picture=GOOD[:800]), INVALID, "picture: the image data is broken"),
    "a page": (own(picture=BAD["b_text.jpg"]), INVALID, "picture: the file is not an image"),
    "unknown layer": (own(layers=["x"]), MISSING, "layer"),
    "empty layer": (own(layers=[""]), INVALID, "layer"),
    "unknown index": (own(index="aquarium"), MISSING, "index"),
    "pooling": (own(pooling=9), INVALID, "pooling"),
    "measure": (own(measure=9), INVALID, "measure"),
    "channels -1": (own(channels=-1), INVALID, "channels is -1; it must be at least 0"),
    "too many channels": (own(channels=LAST), INVALID, f"channels is {LAST}"),
    "neighbours -1": (own(neighbours=-1), INVALID, "neighbours is -1; it must be at least 0"),
    "too many neighbours": (
        own(neighbours=PICTURES + 1),
        INVALID,
        f"neighbours is {PICTURES + 1}, but there are {PICTURES} valid images",
    ),
    "a map of no layer": (own(maps=[selector("x", 0)]), MISSING, "layer"),
    "a map of no channel": (own(maps=[selector(OTHER, LAST)]), MISSING, "channel"),
    "too many maps": (own(maps=[selector(OTHER, 0)] * 20_000), INVALID, "maps: 20020 maps would"),
}


@pytest.mark.parametrize("name", TABLE)
def test_wrong_requests(stub: ActivationServiceStub, name: str) -> None:
    request, code, word = TABLE[name]
    if name == "too many maps":
        request.include_maps = True
    found, details = refusal(stub, request)
    assert found == code
    assert word in details
    check_sentence(details)


def test_the_largest_allowed_requests_are_answered(stub: ActivationServiceStub) -> None:
    request = own(neighbours=PICTURES, channels=CHANNELS, layers=[OTHER], include_maps=True)
    found = stub.AnalyzeImage(request, timeout=60)
    assert len(found.channels) == CHANNELS
    assert len(found.neighbours[0].images) == PICTURES
    assert len({each.channel for each in found.channels}) == CHANNELS
    padded = GOOD + bytes((3 << 20) - len(GOOD))
    assert stub.AnalyzeImage(own(picture=padded), timeout=60).channels


# What a sentence quotes of a request may not look like a path of the server.
TEXTS = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=20)
LAYERS = st.sampled_from([OTHER, KEPT] * 2 + [""]) | TEXTS
INT32 = st.integers(-2, 30) | st.integers(-(2**31), LAST)
COUNTS = st.none() | st.integers(-1, 12) | st.integers(-(2**31), LAST)
PICTURE = st.sampled_from([GOOD, png(9, 16), *BAD.values()]) | st.binary(max_size=40)
REQUESTS = st.builds(
    pb.AnalyzeImageRequest,
    index=st.sampled_from(["", "", "live"]) | TEXTS,
    picture=PICTURE,
    layers=st.lists(LAYERS, max_size=2),
    pooling=st.integers(0, 3) | INT32,
    measure=st.integers(0, 2) | INT32,
    channels=COUNTS,
    neighbours=COUNTS,
    maps=st.lists(st.builds(pb.ChannelSelector, layer=LAYERS, channel=INT32), max_size=2),
    include_maps=st.booleans(),
)


def faults(live: LiveIndex, request: pb.AnalyzeImageRequest) -> set[StatusCode]:
    """Statuses of all that is wrong with a request, from the words of the protocol alone."""
    known = {layer.name for layer in live.generation.manifest.layers}
    named = [*request.layers, *(each.layer for each in request.maps)]
    most = CHANNELS * len(set(request.layers) & known or known)
    drawn = (request.channels if request.HasField("channels") else 20) * request.include_maps
    found = [
        (request.index not in ("", "live"), MISSING),
        (request.picture not in (GOOD, png(9, 16)), INVALID),
        ("" in named, INVALID),
        (any(name and name not in known for name in named), MISSING),
        (any(not 0 <= each.channel < CHANNELS for each in request.maps), MISSING),
        (not 0 <= request.pooling <= 3, INVALID),
        (not 0 <= request.measure <= 2, INVALID),
        (not 0 <= request.channels <= most, INVALID),
        (not 0 <= request.neighbours <= PICTURES, INVALID),
        (drawn > (3 << 20) // 200, INVALID),
    ]
    return {code for wrong, code in found if wrong}


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(request=REQUESTS)
def test_generated_requests(
    live: LiveIndex, stub: ActivationServiceStub, request: pb.AnalyzeImageRequest
) -> None:
    expected = faults(live, request)
    if not expected:
        found = stub.AnalyzeImage(request, timeout=60)
        count = request.channels if request.HasField("channels") else 20
        assert len(found.channels) == count
        assert sum(len(maps.channels) for maps in found.maps) == (
            len(request.maps) + count * request.include_maps
        )
        return
    code, details = refusal(stub, request)
    assert code in expected, details
    check_sentence(details)


@settings(max_examples=50, deadline=None, suppress_health_check=[*HealthCheck])
@given(request=REQUESTS)
def test_generated_requests_without_a_live_model(
    synthetic_server: str, request: pb.AnalyzeImageRequest
) -> None:
    with grpc.insecure_channel(synthetic_server) as channel:
        code, details = refusal(ActivationServiceStub(channel), request)
    known = request.index in ("", "zoo")
    assert code == (NOT_KEPT if known else MISSING)
    assert "--live" in details or not known
    check_sentence(details)
