"""Images along directions, and the directions beside an index, over the wire: against brute force.

`VITSCOPE_REQUESTS` says how many of each kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st
from server.nearness import (
    COUNTS,
    INDEXES,
    INT32,
    LAYERS,
    VALID,
    check,
    common_faults,
    rounded_cosine,
)
from server.questions import (
    CHANNELS,
    DENSE,
    NUMBERS,
    POOLINGS,
    ROWS,
    SPARSE,
    Filter,
    boxes_of,
    each,
    filters,
    usual,
)
from server.refusals import INVALID, MISSING, NOT_KEPT
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.store.approximate import SIZES
from vitscope.store.manifest import Pooling
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Doubles = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    folder = tmp_path_factory.mktemp("directions")
    return build(folder / "zoo", complete=True, boxes=boxes_of, rows=ROWS)


@pytest.fixture(scope="module")
def ask(truth: Synthetic, serve: Callable[..., ServerProcess]) -> Iterator[ActivationServiceStub]:
    """The index with directions beside it, and without them and with approximate searches."""
    put_directions(truth.path)
    listed = truth.path.parent / "listed"
    small = replace(SIZES, flat_below=40, lists=8)
    build(listed, complete=True, boxes=boxes_of, rows=ROWS, sizes=small)
    server = serve(truth.path, listed)
    with grpc.insecure_channel(server.address) as channel:
        yield ActivationServiceStub(channel)


def put_directions(index: Path) -> None:
    """Sound ones, and files that are none."""
    for layer, channels in CHANNELS.items():
        folder = index / "directions" / layer
        folder.mkdir(parents=True)
        eighths = directions_of(layer)
        np.save(folder / "probe.npy", eighths[0].astype(np.float16))
        np.save(folder / "sae.npy", np.asfortranarray(eighths.astype(np.float32)))
        np.save(folder / "großes Wörterbuch.npy", eighths.astype(">f8"))
        np.save(folder / "wide.npy", np.ones(channels + 1))
        np.save(folder / "cube.npy", np.ones((2, 2, channels)))
        np.save(folder / "whole.npy", np.ones(channels, np.int64))
        np.save(folder / "empty.npy", np.ones((0, channels)))
        np.save(folder / "infinite.npy", np.full((2, channels), [np.inf] + [1.0] * (channels - 1)))
        np.save(folder / "null.npy", np.zeros(channels))
        np.save(folder / "objects.npy", np.array([{}] * channels, object), allow_pickle=True)
        np.savez(folder / "several.npz", a=np.ones(channels))
        (folder / "text.npy").write_text("no array")
        (folder / "cut.npy").write_bytes((folder / "sae.npy").read_bytes()[:-9])
        (folder / "nothing.npy").write_bytes(b"")
        (folder / ".hidden.npy").write_bytes((folder / "probe.npy").read_bytes())
        (folder / "folder.npy").mkdir()
    (index / "directions" / "no layer").mkdir()


def directions_of(layer: str) -> Doubles:
    return np.random.default_rng(CHANNELS[layer]).integers(-16, 17, (7, CHANNELS[layer])) / 8


EIGHTHS = st.integers(-64, 64).map(lambda number: number / 8)


@st.composite
def directions(draw: st.DrawFn) -> tuple[str, pb.Direction, Doubles]:
    """A layer, a direction of it on the wire, and its weights; sums of them are exact."""
    layer = draw(st.sampled_from([DENSE, SPARSE]))
    channels = CHANNELS[layer]
    kind = draw(st.sampled_from(["weights", "vector", "name"]))
    if kind == "name":
        name = draw(st.sampled_from(["probe", "sae", "großes Wörterbuch"]))
        number = 0 if name == "probe" else draw(st.integers(0, 6))
        full = name if name == "probe" else f"{name}/{number}"
        return layer, pb.Direction(name=full), directions_of(layer)[number]
    values = draw(st.lists(EIGHTHS, min_size=channels, max_size=channels).filter(any))
    vector = np.array(values)
    if kind == "vector":
        return layer, pb.Direction(vector=vector.astype("<f4").tobytes()), vector
    some = draw(st.permutations([c for c, value in enumerate(values) if value]))
    weights = pb.ChannelWeights(channels=some, weights=[values[channel] for channel in some])
    return layer, pb.Direction(weights=weights), vector


@each
@given(
    direction=directions(),
    pooling=st.sampled_from(["mean", "max", "cls"]),
    k=st.none() | st.integers(1, 65),
    where=filters(),
)
def test_images_along_a_direction(
    truth: Synthetic,
    ask: ActivationServiceStub,
    direction: tuple[str, pb.Direction, Doubles],
    pooling: Pooling,
    k: int | None,
    where: Filter,
) -> None:
    layer, message, weights = direction
    pooling = pooling if pooling in POOLINGS[layer] else "mean"
    reply = ask.TopImagesAlongDirection(
        pb.TopImagesAlongDirectionRequest(
            index="zoo",
            layer=layer,
            direction=message,
            pooling=NUMBERS[pooling],
            k=k,
            filter=where.message(),
        )
    )
    scores = truth.scores(layer, pooling).astype(np.float64)
    passing = where.rows_of(truth)
    sums = {
        row: math.fsum(float(s) * float(w) for s, w in zip(scores[row], weights, strict=True))
        for row in passing
    }
    expected = sorted(passing, key=lambda row: (-np.float32(sums[row]), row))[: usual(k, 65)]
    got = [(image.row, image.score) for image in reply.images]
    assert got == [(row, float(np.float32(sums[row]))) for row in expected]
    assert reply.candidates == len(passing)
    assert reply.generation == truth.generation


@each
@given(
    direction=directions(),
    k=st.none() | st.integers(1, 65),
    where=filters(),
    index=st.sampled_from(["zoo", "listed"]),
)
def test_images_by_their_angle_to_a_direction(
    truth: Synthetic,
    ask: ActivationServiceStub,
    direction: tuple[str, pb.Direction, Doubles],
    k: int | None,
    where: Filter,
    index: str,
) -> None:
    """Of directions no recall is known: approximate searches are not for them."""
    layer, message, weights = direction
    if index == "listed" and message.WhichOneof("direction") == "name":
        index = "zoo"
    reply = ask.TopImagesAlongDirection(
        pb.TopImagesAlongDirectionRequest(
            index=index,
            layer=layer,
            direction=message,
            measure=pb.DIRECTION_MEASURE_COSINE,
            k=k,
            filter=where.message(),
        )
    )
    vectors = truth.scores(layer, "mean").astype(np.float64)
    passing = where.rows_of(truth)
    cosines = {row: rounded_cosine(vectors[row], weights) for row in passing}
    got = [(image.row, image.score) for image in reply.images]
    assert got == sorted(got, key=lambda pair: (-pair[1], pair[0]))
    assert len({row for row, _ in got}) == min(len(passing), usual(k, 65))
    for row, score in got:
        assert score == pytest.approx(cosines[row], rel=2e-7, abs=1e-12)
    left_out = [cosines[row] for row in passing if row not in dict(got)]
    assert max(left_out, default=-2) <= (got[-1][1] if got else 2) + 1e-7
    assert reply.candidates == len(passing)


def test_few_and_many_channels_and_images_are_summed_alike(
    truth: Synthetic, ask: ActivationServiceStub
) -> None:
    """By channels or by images, whichever is less to read: the same sums."""
    scores = truth.scores(SPARSE, "mean").astype(np.float64)
    for count in range(1, 10):
        weights = pb.ChannelWeights(channels=range(count), weights=[0.5] * count)
        for rows in (VALID, VALID[:6], VALID[:1]):
            reply = ask.TopImagesAlongDirection(
                pb.TopImagesAlongDirectionRequest(
                    index="zoo",
                    layer=SPARSE,
                    direction=pb.Direction(weights=weights),
                    filter=pb.ImageFilter(rows=rows),
                    k=65,
                )
            )
            sums = {image.row: image.score for image in reply.images}
            assert sums == {
                row: np.float32(0.5 * math.fsum(scores[row, :count].tolist())) for row in rows
            }


def test_directions_are_listed(truth: Synthetic, ask: ActivationServiceStub) -> None:
    everything = ask.ListDirections(pb.ListDirectionsRequest(index="zoo"))
    usable = [("großes Wörterbuch", 7), ("infinite", 2), ("null", 0), ("probe", 0), ("sae", 7)]
    found = [(each.layer, each.name, each.count) for each in everything.directions]
    assert found == [(layer, *each) for layer in (DENSE, SPARSE) for each in usable]
    assert everything.generation == truth.generation
    one = ask.ListDirections(pb.ListDirectionsRequest(index="zoo", layer=SPARSE))
    assert list(one.directions) == list(everything.directions)[5:]
    assert not ask.ListDirections(pb.ListDirectionsRequest(index="listed")).directions


# ---- refusals


def along(direction: pb.Direction | None, **fields: Any) -> pb.TopImagesAlongDirectionRequest:
    return pb.TopImagesAlongDirectionRequest(
        **{"index": "zoo", "layer": DENSE, "direction": direction} | fields
    )


def weighted(channels: list[int], weights: list[float]) -> pb.Direction:
    return pb.Direction(weights=pb.ChannelWeights(channels=channels, weights=weights))


def named(name: str) -> pb.TopImagesAlongDirectionRequest:
    return along(pb.Direction(name=name))


COSINE = pb.DIRECTION_MEASURE_COSINE
ONE = weighted([1], [1.0])
TABLE: dict[str, tuple[Any, StatusCode, str]] = {
    "no direction": (along(None), INVALID, "direction is not given"),
    "an empty one": (along(pb.Direction()), INVALID, "direction is not given"),
    "no weights": (along(weighted([], [])), INVALID, "no weight but 0"),
    "only zeros": (along(weighted([1, 2], [0, -0.0])), INVALID, "no weight but 0"),
    "a channel twice": (along(weighted([1, 1], [1, 1])), INVALID, "twice"),
    "a weight too few": (along(weighted([1, 2], [1])), INVALID, "1 weights"),
    "channel -1": (along(weighted([-1], [1])), MISSING, "channel"),
    "channel too large": (along(weighted([5], [1])), MISSING, "channel"),
    "NaN": (along(weighted([1], [math.nan])), INVALID, "not finite"),
    "infinite": (along(weighted([1], [math.inf])), INVALID, "not finite"),
    "beyond float32": (along(weighted([3, 4], [3e38, 3e38])), INVALID, "beyond float32"),
    "no bytes": (along(pb.Direction(vector=b"")), INVALID, "0 bytes"),
    "bytes too few": (along(pb.Direction(vector=bytes(19))), INVALID, "19 bytes"),
    "zero bytes": (along(pb.Direction(vector=bytes(20))), INVALID, "no weight but 0"),
    "NaN in bytes": (along(pb.Direction(vector=b"\xff" * 20)), INVALID, "not finite"),
    "unknown name": (named("prob"), MISSING, "there are: cube"),
    "empty name": (named(""), MISSING, "direction"),
    "a path": (named("../blocks.1.mlp/probe"), MISSING, "direction"),
    "a whole path": (named("/etc/passwd"), MISSING, "direction"),
    "the file's name": (named("probe.npy"), MISSING, "direction"),
    "hidden": (named(".hidden"), MISSING, "direction"),
    "a folder": (named("folder"), MISSING, "direction"),
    "a long name": (named("я" * 9999), MISSING, "direction"),
    "a number of one": (named("probe/0"), MISSING, "direction"),
    "several": (named("sae"), MISSING, "holds 7 directions"),
    "number 7": (named("sae/7"), MISSING, "direction"),
    "number -1": (named("sae/-1"), MISSING, "direction"),
    "a very long number": (named(f"sae/{'9' * 9999}"), MISSING, "direction"),
    "another script's number": (named("sae/٣"), MISSING, "direction"),
    "no number": (named("sae/"), MISSING, "direction"),
    "too wide": (named("wide"), NOT_KEPT, "the shape 6"),
    "a cube": (named("cube"), NOT_KEPT, "the shape 2 x 2 x 5"),
    "integers": (named("whole"), NOT_KEPT, "no floats"),
    "none in it": (named("empty"), NOT_KEPT, "the shape 0 x 5"),
    "text": (named("text"), NOT_KEPT, "not readable"),
    "cut": (named("cut/1"), NOT_KEPT, "not readable"),
    "no bytes in the file": (named("nothing"), NOT_KEPT, "not readable"),
    "objects": (named("objects"), NOT_KEPT, "not readable"),
    "not finite in the file": (named("infinite/1"), NOT_KEPT, "not finite"),
    "zeros in the file": (named("null"), INVALID, "no weight but 0"),
    "unknown measure": (along(ONE, measure=9), INVALID, "measure is 9"),
    "angle by maximum": (along(ONE, measure=COSINE, pooling=2), INVALID, "pooling"),
    "unknown pooling": (along(ONE, pooling=9), INVALID, "pooling"),
    "k 0": (along(ONE, k=0), INVALID, "k is 0"),
    "k above valid images": (along(ONE, k=66), INVALID, "k is 66"),
    "unknown label": (along(ONE, filter=pb.ImageFilter(labels=["x"])), MISSING, "filter"),
    "no class token": (
        along(ONE, layer=SPARSE, pooling=3),
        NOT_KEPT,
        "has no cls pooling",
    ),
    "directions: unknown layer": (pb.ListDirectionsRequest(index="zoo", layer="x"), MISSING, "la"),
    "directions: no index": (pb.ListDirectionsRequest(), INVALID, "index is not given"),
}


@pytest.mark.parametrize("name", TABLE)
def test_wrong_requests(truth: Synthetic, ask: ActivationServiceStub, name: str) -> None:
    request, code, word = TABLE[name]
    details = check(ask, request, {code})
    assert word in details
    assert str(truth.path.parent) not in details


FLOATS = st.floats(-4, 4, width=32) | st.floats(width=32)
ANY_DIRECTION = (
    st.none()
    | st.just(ONE)
    | st.builds(
        lambda channels, weights: weighted(channels, weights),
        st.lists(INT32, max_size=3),
        st.lists(FLOATS, max_size=3),
    )
    | st.lists(FLOATS, min_size=4, max_size=9).map(
        lambda values: pb.Direction(vector=np.array(values, "<f4").tobytes())
    )
    | (
        st.sampled_from(["probe", "sae/3", "sae/9", "sae", "cut", "wide"]) | st.text(max_size=5)
    ).map(lambda name: pb.Direction(name=name))
)


@each
@given(
    request=st.builds(
        pb.TopImagesAlongDirectionRequest,
        index=INDEXES,
        layer=LAYERS,
        direction=ANY_DIRECTION,
        measure=st.integers(0, 2) | INT32,
        pooling=st.sampled_from([0, 0, 1, 2, 3]) | INT32,
        k=COUNTS,
    )
)
def test_random_requests_along_directions(
    ask: ActivationServiceStub, request: pb.TopImagesAlongDirectionRequest
) -> None:
    expected = common_faults(request)
    if not 0 <= request.measure <= 2 or not 0 <= request.pooling <= 3:
        expected.add(INVALID)
    if request.measure == 2 and request.pooling in (2, 3):
        expected.add(INVALID)
    if request.pooling == 3 and request.layer == SPARSE:
        expected.add(NOT_KEPT)
    if request.HasField("k") and not 1 <= request.k <= 65:
        expected.add(INVALID)
    # What is beyond float32 depends on the scores.
    possible = direction_faults(request) | ({INVALID} if large(request) else set())
    check(ask, request, expected | direction_faults(request), expected | possible)


def direction_faults(request: pb.TopImagesAlongDirectionRequest) -> set[StatusCode]:
    found = set()
    channels = CHANNELS.get(request.layer, 5)
    match request.direction.WhichOneof("direction"):
        case "weights":
            given = request.direction.weights
            if any(not 0 <= channel < channels for channel in given.channels):
                found.add(MISSING)
            unlike = len(given.channels) != len(given.weights)
            if unlike or len(set(given.channels)) < len(given.channels):
                found.add(INVALID)
            if not any(given.weights) or not all(map(math.isfinite, given.weights)):
                found.add(INVALID)
        case "vector":
            values = np.frombuffer(request.direction.vector, "<f4")
            if len(values) != channels or not values.any() or not np.isfinite(values).all():
                found.add(INVALID)
        case "name":
            if request.direction.name in ("cut", "wide"):
                found.add(NOT_KEPT)
            elif request.direction.name not in ("probe", "sae/3"):
                found.add(MISSING)
        case _:
            found.add(INVALID)
    return found


def large(request: pb.TopImagesAlongDirectionRequest) -> bool:
    """Whether a sum may be beyond float32."""
    given = [*request.direction.weights.weights, *np.frombuffer(request.direction.vector, "<f4")]
    return any(abs(weight) > 1e32 for weight in given)
