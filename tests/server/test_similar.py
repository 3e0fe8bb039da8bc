"""Similar images and patches, and images along directions, over the wire: against brute force.

`VITSCOPE_REQUESTS` says how many of each kind.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server.questions import NUMBERS, POOLINGS, Filter, boxes_of, filters, usual
from synthetic import ServerProcess, Synthetic, build

from vitscope.store.approximate import SIZES
from vitscope.store.manifest import Pooling
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

ROWS = 70
DENSE, SPARSE = "blocks.0.mlp", "blocks.1.mlp"
CHANNELS = {DENSE: 5, SPARSE: 9}
CELLS, WIDTH = 4, 2
VALID = [row for row in range(ROWS) if row not in (0, 17, 31, 32, 69)]
INVALID, MISSING = StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND
NOT_KEPT = StatusCode.FAILED_PRECONDITION

Doubles = npt.NDArray[np.float64]

each = settings(
    max_examples=int(os.environ.get("VITSCOPE_REQUESTS", "150")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    folder = tmp_path_factory.mktemp("similar")
    return build(folder / "zoo", complete=True, boxes=boxes_of, rows=ROWS)


@pytest.fixture(scope="module")
def ask(truth: Synthetic, serve: Callable[..., ServerProcess]) -> Iterator[ActivationServiceStub]:
    """The index, beside it directions, and twice more: without a search among patches, and with
    approximate searches."""
    folder = truth.path.parent
    put_directions(truth.path)
    build(
        folder / "unsearched",
        complete=True,
        boxes=boxes_of,
        rows=ROWS,
        patch_search=False,
        thumbnails=False,
    )
    small = replace(SIZES, flat_below=40, lists=8)
    build(folder / "listed", complete=True, boxes=boxes_of, rows=ROWS, sizes=small)
    server = serve(truth.path, folder / "unsearched", folder / "listed")
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


# ---- patches


def patch_cosines(truth: Synthetic, row: int, cell: int) -> dict[tuple[int, int], float]:
    """Cosine of a patch of the dense layer with every patch (row, cell) of valid images."""
    patches = truth.activations[DENSE][:, 2:].astype(np.float64)  # [N, P, C]
    own = patches[row, cell]
    found = {}
    for other in VALID:
        for place, vector in enumerate(patches[other]):
            scale = math.sqrt(float(vector @ vector)) * math.sqrt(float(own @ own))
            cosine = float(vector @ own) / scale if scale else 0.0
            found[other, place] = float(np.float32(min(1.0, max(-1.0, cosine))))
    return found


@each
@given(
    row=st.sampled_from(VALID),
    cell=st.integers(0, CELLS - 1),
    k=st.none() | st.integers(1, 256),
    other_images=st.booleans(),
    exact=st.booleans(),
    index=st.sampled_from(["zoo", "unsearched"]),
)
def test_similar_patches(
    truth: Synthetic,
    ask: ActivationServiceStub,
    row: int,
    cell: int,
    k: int | None,
    other_images: bool,
    exact: bool,
    index: str,
) -> None:
    y, x = divmod(cell, WIDTH)
    request = pb.SimilarPatchesRequest(
        index=index,
        layer=DENSE,
        row=row,
        patch=pb.PatchPlace(y=y, x=x),
        k=k,
        other_images=other_images,
        exact=exact,
    )
    reply = ask.SimilarPatches(request)
    cosines = patch_cosines(truth, row, cell)
    for place in range(CELLS) if other_images else [cell]:
        del cosines[row, place]
    expected = sorted(cosines.items(), key=lambda pair: (-pair[1], pair[0]))[: usual(k, 256)]
    got = [((p.row, p.y * WIDTH + p.x), p.score) for p in reply.patches]
    assert got == expected
    assert (reply.exact, reply.recall_at_10) == (True, 1.0)
    if index == "zoo":
        assert reply.generation == truth.generation
    for patch in reply.patches:
        record = truth.records[patch.row]
        assert (patch.key, patch.label) == (record.key, record.label or "")
    assert (reply.grid.cell_height, reply.grid.cell_width) == (24, 40)


def test_patches_come_with_their_pixels(truth: Synthetic, ask: ActivationServiceStub) -> None:
    near = ask.SimilarPatches(
        pb.SimilarPatchesRequest(index="zoo", layer=DENSE, row=5, patch=pb.PatchPlace(y=1, x=0))
    )
    for patch in near.patches:
        x0, y0, x1, y1 = truth.records[patch.row].view or (0, 0, 0, 0)
        width, height = (x1 - x0) / 2, (y1 - y0) / 2
        corners = (patch.source.x0, patch.source.y0, patch.source.x1, patch.source.y1)
        left, top = x0 + patch.x * width, y0 + patch.y * height
        assert corners == pytest.approx((left, top, left + width, top + height), abs=1e-4)


def test_an_approximate_search_says_so_and_an_exact_one_does_not(
    truth: Synthetic, ask: ActivationServiceStub
) -> None:
    where: dict[str, Any] = {"layer": DENSE, "row": 5, "k": 10}
    patch = pb.PatchPlace(y=0, x=1)
    for exact in (False, True):
        images = ask.SimilarImages(pb.SimilarImagesRequest(index="listed", exact=exact, **where))
        patches = ask.SimilarPatches(
            pb.SimilarPatchesRequest(index="listed", exact=exact, patch=patch, **where)
        )
        along = ask.TopImagesAlongDirection(
            pb.TopImagesAlongDirectionRequest(
                index="listed",
                layer=DENSE,
                direction=pb.Direction(weights=pb.ChannelWeights(channels=[3], weights=[1])),
                measure=pb.DIRECTION_MEASURE_COSINE,
                exact=exact,
            )
        )
        for reply in (images, patches):
            assert reply.exact == exact
            assert (reply.recall_at_10 == 1.0) if exact else (0.9 < reply.recall_at_10 <= 1)
        # Of directions no recall is known, so that they are held against every image.
        assert (along.exact, along.recall_at_10) == (True, 1.0)
    same = ask.SimilarPatches(pb.SimilarPatchesRequest(index="zoo", patch=patch, **where))
    assert patches.patches == same.patches


# ---- images


@each
@given(
    layer=st.sampled_from([DENSE, SPARSE]),
    row=st.sampled_from(VALID),
    k=st.none() | st.integers(1, 64),
    exact=st.booleans(),
)
def test_similar_images(
    truth: Synthetic,
    ask: ActivationServiceStub,
    layer: str,
    row: int,
    k: int | None,
    exact: bool,
) -> None:
    request = pb.SimilarImagesRequest(index="zoo", layer=layer, row=row, k=k, exact=exact)
    reply = ask.SimilarImages(request)
    vectors = truth.scores(layer, "mean").astype(np.float64)
    cosines = {
        other: rounded_cosine(vectors[other], vectors[row]) for other in VALID if other != row
    }
    expected = sorted(cosines.items(), key=lambda pair: (-pair[1], pair[0]))[: usual(k, 64)]
    assert [(image.row, image.score) for image in reply.images] == expected
    assert (reply.exact, reply.recall_at_10) == (True, 1.0)


def rounded_cosine(left: Doubles, right: Doubles) -> float:
    scale = math.sqrt(float(left @ left)) * math.sqrt(float(right @ right))
    cosine = float(left @ right) / scale if scale else 0.0
    return float(np.float32(min(1.0, max(-1.0, cosine))))


# ---- directions

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
    assert (reply.exact, reply.recall_at_10) == (True, 1.0)
    assert reply.generation == truth.generation


@each
@given(
    direction=directions(),
    k=st.none() | st.integers(1, 65),
    where=filters(),
    exact=st.booleans(),
)
def test_images_by_their_angle_to_a_direction(
    truth: Synthetic,
    ask: ActivationServiceStub,
    direction: tuple[str, pb.Direction, Doubles],
    k: int | None,
    where: Filter,
    exact: bool,
) -> None:
    layer, message, weights = direction
    reply = ask.TopImagesAlongDirection(
        pb.TopImagesAlongDirectionRequest(
            index="zoo",
            layer=layer,
            direction=message,
            measure=pb.DIRECTION_MEASURE_COSINE,
            k=k,
            filter=where.message(),
            exact=exact,
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
    assert (reply.exact, reply.recall_at_10) == (True, 1.0)


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


def like(**fields: Any) -> pb.SimilarPatchesRequest:
    right: dict[str, Any] = {"index": "zoo", "layer": DENSE, "row": 1}
    return pb.SimilarPatchesRequest(**right | {"patch": pb.PatchPlace(y=1, x=1)} | fields)


COSINE = pb.DIRECTION_MEASURE_COSINE
ONE = weighted([1], [1.0])
TABLE: dict[str, tuple[Any, StatusCode, str]] = {
    "patches: not dense": (like(layer=SPARSE), NOT_KEPT, "--retain-all"),
    "patches: no place": (like(patch=None), INVALID, "patch is not given"),
    "patches: below the grid": (like(patch=pb.PatchPlace(y=2, x=0)), MISSING, "2 x 2"),
    "patches: left of the grid": (like(patch=pb.PatchPlace(y=0, x=-1)), MISSING, "patch"),
    "patches: invalid row": (like(row=17), NOT_KEPT, "row 17 is an invalid image"),
    "patches: row too large": (like(row=70), MISSING, "row"),
    "patches: k 0": (like(k=0), INVALID, "k is 0"),
    "patches: k above all others": (like(k=260), INVALID, "k is 260"),
    "patches: k above those of others": (like(k=257, other_images=True), INVALID, "k is 257"),
    "patches: unknown layer": (like(layer="x"), MISSING, "layer"),
    "patches: unknown index": (like(index="x"), MISSING, "index"),
    "along: no direction": (along(None), INVALID, "direction is not given"),
    "along: an empty one": (along(pb.Direction()), INVALID, "direction is not given"),
    "along: no weights": (along(weighted([], [])), INVALID, "no weight but 0"),
    "along: only zeros": (along(weighted([1, 2], [0, -0.0])), INVALID, "no weight but 0"),
    "along: a channel twice": (along(weighted([1, 1], [1, 1])), INVALID, "twice"),
    "along: a weight too few": (along(weighted([1, 2], [1])), INVALID, "1 weights"),
    "along: channel -1": (along(weighted([-1], [1])), MISSING, "channel"),
    "along: channel too large": (along(weighted([5], [1])), MISSING, "channel"),
    "along: NaN": (along(weighted([1], [math.nan])), INVALID, "not finite"),
    "along: infinite": (along(weighted([1], [math.inf])), INVALID, "not finite"),
    "along: beyond float32": (along(weighted([3, 4], [3e38, 3e38])), INVALID, "beyond float32"),
    "along: no bytes": (along(pb.Direction(vector=b"")), INVALID, "0 bytes"),
    "along: bytes too few": (along(pb.Direction(vector=bytes(19))), INVALID, "19 bytes"),
    "along: zero bytes": (along(pb.Direction(vector=bytes(20))), INVALID, "no weight but 0"),
    "along: NaN in bytes": (along(pb.Direction(vector=b"\xff" * 20)), INVALID, "not finite"),
    "along: unknown name": (named("prob"), MISSING, "there are: cube"),
    "along: empty name": (named(""), MISSING, "direction"),
    "along: a path": (named("../blocks.1.mlp/probe"), MISSING, "direction"),
    "along: a whole path": (named("/etc/passwd"), MISSING, "direction"),
    "along: the file's name": (named("probe.npy"), MISSING, "direction"),
    "along: hidden": (named(".hidden"), MISSING, "direction"),
    "along: a folder": (named("folder"), MISSING, "direction"),
    "along: a long name": (named("я" * 9999), MISSING, "direction"),
    "along: a number of one": (named("probe/0"), MISSING, "direction"),
    "along: several": (named("sae"), MISSING, "holds 7 directions"),
    "along: number 7": (named("sae/7"), MISSING, "direction"),
    "along: number -1": (named("sae/-1"), MISSING, "direction"),
    "along: a very long number": (named(f"sae/{'9' * 9999}"), MISSING, "direction"),
    "along: another script's number": (named("sae/٣"), MISSING, "direction"),
    "along: no number": (named("sae/"), MISSING, "direction"),
    "along: too wide": (named("wide"), NOT_KEPT, "the shape 6"),
    "along: a cube": (named("cube"), NOT_KEPT, "the shape 2 x 2 x 5"),
    "along: integers": (named("whole"), NOT_KEPT, "no floats"),
    "along: none in it": (named("empty"), NOT_KEPT, "the shape 0 x 5"),
    "along: text": (named("text"), NOT_KEPT, "not readable"),
    "along: cut": (named("cut/1"), NOT_KEPT, "not readable"),
    "along: no bytes in the file": (named("nothing"), NOT_KEPT, "not readable"),
    "along: objects": (named("objects"), NOT_KEPT, "not readable"),
    "along: not finite in the file": (named("infinite/1"), NOT_KEPT, "not finite"),
    "along: zeros in the file": (named("null"), INVALID, "no weight but 0"),
    "along: unknown measure": (along(ONE, measure=9), INVALID, "measure is 9"),
    "along: angle by maximum": (along(ONE, measure=COSINE, pooling=2), INVALID, "pooling"),
    "along: unknown pooling": (along(ONE, pooling=9), INVALID, "pooling"),
    "along: k 0": (along(ONE, k=0), INVALID, "k is 0"),
    "along: k above valid images": (along(ONE, k=66), INVALID, "k is 66"),
    "along: unknown label": (along(ONE, filter=pb.ImageFilter(labels=["x"])), MISSING, "filter"),
    "along: no class token": (
        along(ONE, layer=SPARSE, pooling=3),
        NOT_KEPT,
        "has no cls pooling",
    ),
    "directions: unknown layer": (pb.ListDirectionsRequest(index="zoo", layer="x"), MISSING, "la"),
    "directions: no index": (pb.ListDirectionsRequest(), INVALID, "index is not given"),
}


def refusal(stub: ActivationServiceStub, request: Any) -> tuple[StatusCode, str]:
    method = type(request).__name__.removesuffix("Request")
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request, timeout=60)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize("name", TABLE)
def test_wrong_requests(truth: Synthetic, ask: ActivationServiceStub, name: str) -> None:
    request, code, word = TABLE[name]
    found, details = refusal(ask, request)
    assert (found, word in details) == (code, True), details
    assert details.endswith((".", "?"))
    assert "\n" not in details
    assert len(details) < 400
    assert str(truth.path.parent) not in details


INT32 = st.integers(-2, 9) | st.integers(-(2**31), 2**31 - 1)
COUNTS = st.none() | st.integers(-1, 70) | INT32
INDEXES = st.sampled_from(["zoo"] * 6 + ["", "x"])
LAYERS = st.sampled_from([DENSE, SPARSE] * 4 + ["", "x"])
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
        pb.SimilarPatchesRequest,
        index=INDEXES,
        layer=LAYERS,
        row=st.sampled_from([1, 2, 40]) | st.integers(-2, 75) | st.integers(-(2**63), 2**63 - 1),
        patch=st.none() | st.builds(pb.PatchPlace, y=st.integers(0, 1), x=st.integers(-1, 1)),
        k=COUNTS,
        other_images=st.booleans(),
        exact=st.booleans(),
    )
)
def test_random_requests_for_similar_patches(
    ask: ActivationServiceStub, request: pb.SimilarPatchesRequest
) -> None:
    expected = common_faults(request)
    if not 0 <= request.row < ROWS:
        expected.add(MISSING)
    elif request.row not in VALID:
        expected.add(NOT_KEPT)
    if request.layer == SPARSE:
        expected.add(NOT_KEPT)
    if not request.HasField("patch"):
        expected.add(INVALID)
    if request.patch.x < 0:
        expected.add(MISSING)
    most = 65 * CELLS - (CELLS if request.other_images else 1)
    if request.HasField("k") and not 1 <= request.k <= most:
        expected.add(INVALID)
    check(ask, request, expected)


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
        exact=st.booleans(),
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


def common_faults(request: Any) -> set[StatusCode]:
    found = set()
    if request.index != "zoo":
        found.add(MISSING if request.index else INVALID)
    if request.layer not in CHANNELS:
        found.add(MISSING if request.layer else INVALID)
    return found


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


def check(
    stub: ActivationServiceStub,
    request: Any,
    expected: set[StatusCode],
    possible: set[StatusCode] | None = None,
) -> None:
    """One of the expected statuses, an answer where there is none."""
    method = type(request).__name__.removesuffix("Request")
    if expected:
        code, details = refusal(stub, request)
    else:
        answer = getattr(stub, method).future(request, timeout=60)
        code, details = answer.code(), answer.details() or "."
        possible = {*(possible or ()), StatusCode.OK}
    assert code in (expected if possible is None else possible), details
    assert details.endswith((".", "?"))
    assert "\n" not in details
