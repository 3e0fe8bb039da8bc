"""Similar images and patches, over the wire: against brute force in NumPy.

`VITSCOPE_REQUESTS` says how many of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st
from server.nearness import (
    CELLS,
    COUNTS,
    INDEXES,
    LAYERS,
    VALID,
    WIDTH,
    check,
    common_faults,
    rounded_cosine,
)
from server.questions import DENSE, ROWS, SPARSE, boxes_of, each, usual
from server.refusals import INVALID, MISSING, NOT_KEPT
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.store.approximate import SIZES
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    folder = tmp_path_factory.mktemp("similar")
    return build(folder / "zoo", complete=True, boxes=boxes_of, rows=ROWS)


@pytest.fixture(scope="module")
def ask(truth: Synthetic, serve: Callable[..., ServerProcess]) -> Iterator[ActivationServiceStub]:
    """The index, and twice more: without a search among patches, and with
    approximate searches."""
    folder = truth.path.parent
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


# ---- patches


def patch_cosines(truth: Synthetic, row: int, cell: int) -> dict[tuple[int, int], float]:
    """Cosine of a patch of the dense layer with every patch (row, cell) of valid images."""
    patches = truth.activations[DENSE][:, 2:].astype(np.float64)  # [N, P, C]
    own = patches[row, cell]
    found = {}
    for other in VALID:
        for place, vector in enumerate(patches[other]):
            found[other, place] = rounded_cosine(vector, own)
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
        for reply in (images, patches):
            assert reply.exact == exact
            assert (reply.recall_at_10 == 1.0) if exact else (0.9 < reply.recall_at_10 <= 1)
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


# ---- refusals


def like(**fields: Any) -> pb.SimilarPatchesRequest:
    right: dict[str, Any] = {"index": "zoo", "layer": DENSE, "row": 1}
    return pb.SimilarPatchesRequest(**right | {"patch": pb.PatchPlace(y=1, x=1)} | fields)


TABLE: dict[str, tuple[pb.SimilarPatchesRequest, StatusCode, str]] = {
    "not dense": (like(layer=SPARSE), NOT_KEPT, "--retain-all"),
    "no place": (like(patch=None), INVALID, "patch is not given"),
    "below the grid": (like(patch=pb.PatchPlace(y=2, x=0)), MISSING, "2 x 2"),
    "left of the grid": (like(patch=pb.PatchPlace(y=0, x=-1)), MISSING, "patch"),
    "invalid row": (like(row=17), NOT_KEPT, "row 17 is an invalid image"),
    "row too large": (like(row=70), MISSING, "row"),
    "k 0": (like(k=0), INVALID, "k is 0"),
    "k above all others": (like(k=260), INVALID, "k is 260"),
    "k above those of others": (like(k=257, other_images=True), INVALID, "k is 257"),
    "unknown layer": (like(layer="x"), MISSING, "layer"),
    "unknown index": (like(index="x"), MISSING, "index"),
}


@pytest.mark.parametrize("name", TABLE)
def test_wrong_requests(truth: Synthetic, ask: ActivationServiceStub, name: str) -> None:
    request, code, word = TABLE[name]
    details = check(ask, request, {code})
    assert word in details
    assert str(truth.path.parent) not in details


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
