"""Generated questions about channels and boxes, against brute force.

Over the wire, and over the dense activations. `VITSCOPE_REQUESTS` says how many of each kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server.questions import (
    BOX_LABELS,
    CHANNELS,
    DENSE,
    GRID,
    NUMBERS,
    ROWS,
    SPARSE,
    Filter,
    corners_of,
    each,
    filters,
    kept_rows,
    quantile,
    usual,
)
from synthetic import Synthetic

from vitscope.store.boxes import Box
from vitscope.store.manifest import Pooling
from vitscope.store.rows import RowRecord
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

# ---- channels

GOOD_ROWS = st.sampled_from([row for row in range(1, ROWS - 1) if row not in (17, 31, 32)])
SOME_LAYERS = st.sampled_from([(), (DENSE,), (SPARSE,), (SPARSE, DENSE), (DENSE, DENSE)])


def in_order(names: tuple[str, ...]) -> list[str]:
    return [layer for layer in (DENSE, SPARSE) if not names or layer in names]


@each
@given(
    row=GOOD_ROWS,
    names=SOME_LAYERS,
    pooling=st.sampled_from([None, "mean", "max"]),
    percentiles=st.booleans(),
    k=st.none() | st.integers(1, 5),
)
def test_top_channels_of_an_image(
    truth: Synthetic,
    ask: ActivationServiceStub,
    row: int,
    names: tuple[str, ...],
    pooling: Pooling | None,
    percentiles: bool,
    k: int | None,
) -> None:
    request = pb.TopChannelsRequest(
        row=row,
        layers=names,
        measure=pb.MEASURE_PERCENTILE if percentiles else pb.MEASURE_VALUE,
        k=k,
    )
    if pooling is not None:
        request.pooling = NUMBERS[pooling]
    found = []
    for depth, layer in enumerate(in_order(names)):
        scores = truth.scores(layer, pooling or "mean").astype(np.float64)
        shares = (scores[truth.valid] < scores[row]).mean(0)
        found += [
            (scores[row, channel], shares[channel], depth, channel, layer)
            for channel in range(CHANNELS[layer])
        ]
    found.sort(key=lambda one: (-one[1] if percentiles else 0, -one[0], one[2], one[3]))
    expected = [
        (layer, channel, score, share if percentiles else 0.0)
        for score, share, _, channel, layer in found[: usual(k, len(found))]
    ]
    channels = ask.TopChannels(request).channels
    assert [(c.layer, c.channel, c.score, c.percentile) for c in channels] == expected
    assert all(c.HasField("percentile") == percentiles for c in channels)


@each
@given(
    row=GOOD_ROWS,
    y=st.integers(0, 1),
    x=st.integers(0, 1),
    percentiles=st.booleans(),
    k=st.none() | st.integers(1, 5),
)
def test_top_channels_of_a_patch(
    truth: Synthetic,
    ask: ActivationServiceStub,
    row: int,
    y: int,
    x: int,
    percentiles: bool,
    k: int | None,
) -> None:
    request = pb.TopChannelsRequest(
        row=row,
        layers=[DENSE],
        patch=pb.PatchPlace(y=y, x=x),
        measure=pb.MEASURE_PERCENTILE if percentiles else pb.MEASURE_VALUE,
        k=k,
    )
    values = truth.maps(DENSE)[row, :, y, x].astype(np.float64)
    shares = (truth.scores(DENSE, "max")[truth.valid] < values).mean(0)
    order = sorted(range(5), key=lambda c: (-shares[c] if percentiles else 0, -values[c], c))
    expected = [(c, values[c], shares[c] if percentiles else 0.0) for c in order[: usual(k, 5)]]
    channels = ask.TopChannels(request).channels
    assert [(c.channel, c.score, c.percentile) for c in channels] == expected


@each
@given(
    row=GOOD_ROWS,
    corner=st.tuples(st.floats(-5, 12, width=32), st.floats(-5, 12, width=32)),
    size=st.tuples(st.floats(0.5, 15, width=32), st.floats(0.5, 15, width=32)),
    k=st.none() | st.integers(1, 5),
)
def test_top_channels_inside_minus_outside_a_rectangle(
    truth: Synthetic,
    ask: ActivationServiceStub,
    row: int,
    corner: tuple[float, float],
    size: tuple[float, float],
    k: int | None,
) -> None:
    x0, y0 = (float(np.float32(edge)) for edge in corner)
    x1, y1 = (float(np.float32(edge + side)) for edge, side in zip(corner, size, strict=True))
    request = pb.TopChannelsRequest(
        row=row, layers=[DENSE], rectangle=pb.Rectangle(x0=x0, y0=y0, x1=x1, y1=y1), k=k
    )
    check_box(truth, ask, request, (x0, y0, x1, y1))


@each
@given(row=GOOD_ROWS, box=st.integers(0, 1), k=st.none() | st.integers(1, 5))
def test_top_channels_of_a_labelled_box(
    truth: Synthetic, ask: ActivationServiceStub, row: int, box: int, k: int | None
) -> None:
    request = pb.TopChannelsRequest(row=row, layers=[DENSE], box=box, k=k)
    boxes = truth.records[row].boxes
    if box >= len(boxes):
        with pytest.raises(grpc.RpcError, match="box"):
            ask.TopChannels(request)
        return
    check_box(truth, ask, request, boxes[box].corners)


@pytest.mark.parametrize("width", [1e-10, 1e-9, 3e-9, 1e-8, 2e-8, 1e-7, 1e-6, 1e-5])
@pytest.mark.parametrize("row", [3, 6, 7, 8, 42])
def test_a_rectangle_that_leaves_next_to_nothing(
    truth: Synthetic, ask: ActivationServiceStub, row: int, width: float
) -> None:
    """A sliver of the outermost patches, inside of the rectangle or outside of it."""
    tokens, record = truth.layers[DENSE].tokens, truth.records[row]
    left, right = corners_of(tokens, record, 0, 0)[0], corners_of(tokens, record, 1, 1)[2]
    for x0, x1 in ((-50, left + width), (left + width, 50), (right - width, 50)):
        corners = [float(np.float32(each)) for each in (x0, -50, x1, 50)]
        rectangle = pb.Rectangle(x0=corners[0], y0=corners[1], x1=corners[2], y1=corners[3])
        request = pb.TopChannelsRequest(row=row, layers=[DENSE], rectangle=rectangle)
        check_box(truth, ask, request, (corners[0], corners[1], corners[2], corners[3]))


def check_box(
    truth: Synthetic,
    ask: ActivationServiceStub,
    request: pb.TopChannelsRequest,
    corners: tuple[float, float, float, float],
) -> None:
    tokens, record = truth.layers[DENSE].tokens, truth.records[request.row]
    shares = np.zeros((2, 2))
    for y in range(2):
        for x in range(2):
            patch = corners_of(tokens, record, y, x)
            across = min(patch[2], corners[2]) - max(patch[0], corners[0])
            down = min(patch[3], corners[3]) - max(patch[1], corners[1])
            area = (patch[2] - patch[0]) * (patch[3] - patch[1])
            shares[y, x] = max(across, 0) * max(down, 0) / area
    least = min(shares.sum(), (1 - shares).sum())
    if abs(least - 1e-9) < 1e-13:
        # On the border itself: what rounding leaves decides on which side, and differs.
        return
    if least < 1e-9:
        with pytest.raises(grpc.RpcError, match="nothing to compare"):
            ask.TopChannels(request)
        return
    maps = truth.maps(DENSE)[request.row].astype(np.float64)
    inside = (maps * shares).sum((1, 2)) / shares.sum()
    outside = (maps * (1 - shares)).sum((1, 2)) / (1 - shares).sum()
    truths = inside - outside
    # Two ways of computing a share differ by some 1e-15, which weighs the more the less there is.
    near = 1e-4 + 1e-14 / least * np.abs(maps).max((1, 2))
    channels = ask.TopChannels(request).channels
    assert len({c.channel for c in channels}) == usual(request.k or None, 5)
    scores = [c.score for c in channels]
    assert scores == sorted(scores, reverse=True)
    for c in channels:
        assert c.score == pytest.approx(truths[c.channel], rel=1e-4, abs=near[c.channel])
    for other in set(range(5)) - {one.channel for one in channels}:
        assert truths[other] <= scores[-1] + 1e-4 * max(1, abs(scores[-1])) + near[other]


@each
@given(
    layer=st.sampled_from([DENSE, SPARSE]),
    channel=st.integers(0, 4),
    names=SOME_LAYERS,
    k=st.none() | st.integers(1, 4),
)
def test_similar_channels(
    truth: Synthetic,
    ask: ActivationServiceStub,
    layer: str,
    channel: int,
    names: tuple[str, ...],
    k: int | None,
) -> None:
    searched = in_order(names) if names else [layer]
    request = pb.SimilarChannelsRequest(layer=layer, channel=channel, layers=names, k=k)
    own = truth.scores(layer, "mean")[truth.valid, channel].astype(np.float64)
    truths = {}
    for other in searched:
        scores = truth.scores(other, "mean")[truth.valid].astype(np.float64)
        for number in range(CHANNELS[other]):
            theirs = scores[:, number]
            if (other, number) == (layer, channel) or own.std() == 0 or theirs.std() == 0:
                continue
            product = ((own - own.mean()) * (theirs - theirs.mean())).mean()
            truths[other, number] = product / (own.std() * theirs.std())
    channels = ask.SimilarChannels(request).channels
    most = sum(CHANNELS[other] for other in searched) - (layer in searched)
    assert len(channels) == min(len(truths), usual(k, most))
    got = [(c.layer, c.channel) for c in channels]
    assert len(set(got)) == len(got)
    found = [c.score for c in channels]
    assert found == sorted(found, reverse=True)
    for c in channels:
        assert c.score == pytest.approx(truths[c.layer, c.channel], abs=1e-5)
    others = [value for pair, value in truths.items() if pair not in got]
    if others and found:
        assert max(others) <= found[-1] + 1e-5


@each
@given(
    layer=st.sampled_from([DENSE, SPARSE]),
    pooling=st.sampled_from(["mean", "max"]),
    channels=st.none() | st.lists(st.integers(0, 4), min_size=1, max_size=5),
)
def test_channel_statistics(
    truth: Synthetic,
    ask: ActivationServiceStub,
    layer: str,
    pooling: Pooling,
    channels: list[int] | None,
) -> None:
    request = pb.GetChannelStatisticsRequest(
        layer=layer, pooling=NUMBERS[pooling], channels=channels or ()
    )
    reply = ask.GetChannelStatistics(request)
    wanted = list(range(CHANNELS[layer]) if channels is None else channels)
    assert list(reply.channels) == wanted
    scores = truth.scores(layer, pooling)[truth.valid][:, wanted].astype(np.float64)
    assert reply.mean == pytest.approx(scores.mean(0))
    assert reply.variance == pytest.approx(scores.var(0))
    assert list(reply.active) == (scores > 0).mean(0).tolist()
    expected = [[quantile(column, level) for level in reply.quantile_levels] for column in scores.T]
    assert np.array(reply.quantiles).reshape(len(wanted), -1).tolist() == expected
    assert list(reply.quantile_levels) == [0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1]


# ---- boxes


def share_of_boxes(tokens: Any, record: RowRecord, boxes: Sequence[Box], y: int, x: int) -> float:
    """Share of a patch that boxes cover: one's area, and the other's, without what both cover."""
    patch = corners_of(tokens, record, y, x)

    def area(*rectangles: Sequence[float]) -> float:
        left, upper = (max(r[i] for r in rectangles) for i in (0, 1))
        right, lower = (min(r[i] for r in rectangles) for i in (2, 3))
        return max(right - left, 0) * max(lower - upper, 0)

    corners = [box.corners for box in boxes]
    covered = sum(area(patch, one) for one in corners)
    if len(corners) == 2:
        covered -= area(patch, *corners)
    return covered / area(patch)


def scores_of_map(values: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]) -> list[float]:
    """Inside, area, area under the curve by every pair of patches, and contrast."""
    positive = np.maximum(values, 0)
    inside = (positive * shares).sum() / positive.sum() if positive.sum() else math.nan
    chance = total = 0.0
    for value, share in zip(values, shares, strict=True):
        for other, rest in zip(values, 1 - shares, strict=True):
            chance += share * rest * ((value > other) + (value == other) / 2)
            total += share * rest
    contrast = (values * shares).sum() / shares.sum()
    contrast -= (values * (1 - shares)).sum() / (1 - shares).sum()
    return [inside, shares.mean(), chance / total, contrast]


def boxed_rows(
    truth: Synthetic, layer: str, channel: int, labels: Sequence[str], where: Filter
) -> dict[int, list[float]]:
    """The rows that count, and their scores."""
    tokens, found = truth.layers[layer].tokens, {}
    for row in sorted(set(where.rows_of(truth)) & kept_rows(truth, layer, channel)):
        record = truth.records[row]
        boxes = [box for box in record.boxes if not labels or box.label in labels]
        if not boxes:
            continue
        grid = [(y, x) for y in range(GRID[layer][0]) for x in range(GRID[layer][1])]
        shares = np.array([share_of_boxes(tokens, record, boxes, y, x) for y, x in grid])
        if 1e-9 < shares.sum() < len(grid) - 1e-9:
            values = truth.maps(layer)[row, channel].ravel().astype(np.float64)
            found[row] = scores_of_map(values, shares)
    return found


def scores_on_the_wire(scores: pb.BoxScores) -> list[float]:
    return [scores.inside, scores.area, scores.auc, scores.contrast]


SOME_LABELS = st.lists(st.sampled_from(BOX_LABELS), max_size=2, unique=True)


@each
@given(
    layer=st.sampled_from([DENSE, SPARSE]),
    channel=st.integers(0, 4),
    labels=SOME_LABELS,
    where=filters(),
    measure=st.integers(0, 3),
    bottom=st.booleans(),
    k=st.none() | st.integers(1, 65),
)
def test_top_images_by_box(
    truth: Synthetic,
    ask: ActivationServiceStub,
    layer: str,
    channel: int,
    labels: list[str],
    where: Filter,
    measure: int,
    bottom: bool,
    k: int | None,
) -> None:
    order = pb.ORDER_BOTTOM if bottom else pb.ORDER_TOP
    request = pb.TopImagesByBoxRequest(
        layer=layer,
        channel=channel,
        box_labels=labels,
        filter=where.message(),
        measure=measure,  # type: ignore[arg-type]
        order=order,
        k=k,
    )
    reply = ask.TopImagesByBox(request)
    expected = boxed_rows(truth, layer, channel, labels, where)
    assert reply.candidates == len(expected)
    column = [3, 3, 0, 2][measure]
    ranked = {row: each[column] for row, each in expected.items() if not math.isnan(each[column])}
    assert len(reply.images) == min(len(ranked), usual(k, 65))
    sign = 1 if bottom else -1
    got = [(sign * scores_on_the_wire(image.scores)[column], image.row) for image in reply.images]
    assert got == sorted(got)
    for image in reply.images:
        assert scores_on_the_wire(image.scores) == pytest.approx(
            expected[image.row], rel=1e-5, abs=1e-6, nan_ok=True
        )
        record = truth.records[image.row]
        assert (image.key, image.label) == (record.key, record.label or "")
    others = [sign * ranked[row] for row in ranked if row not in {row for _, row in got}]
    if others and got:
        assert min(others) >= got[-1][0] - 1e-6 * max(1, abs(got[-1][0]))


@each
@given(
    layer=st.sampled_from([DENSE, SPARSE]),
    channels=st.none() | st.lists(st.integers(0, 4), min_size=1, max_size=3),
    labels=SOME_LABELS,
    where=filters(),
)
def test_box_scores_of_channels(
    truth: Synthetic,
    ask: ActivationServiceStub,
    layer: str,
    channels: list[int] | None,
    labels: list[str],
    where: Filter,
) -> None:
    request = pb.GetBoxScoresRequest(
        layer=layer, channels=channels or (), box_labels=labels, filter=where.message()
    )
    reply = ask.GetBoxScores(request)
    wanted = list(range(CHANNELS[layer]) if channels is None else channels)
    assert list(reply.channels) == wanted
    columns = (wanted, reply.images, reply.inside_images, reply.scores)
    for channel, images, inside, scores in zip(*columns, strict=True):
        expected = list(boxed_rows(truth, layer, channel, labels, where).values())
        assert images == len(expected)
        assert inside == sum(not math.isnan(each[0]) for each in expected)
        means = []
        for column in range(4):
            there = [each[column] for each in expected if not math.isnan(each[column])]
            means.append(sum(there) / len(there) if there else math.nan)
        assert scores_on_the_wire(scores) == pytest.approx(means, rel=1e-5, abs=1e-6, nan_ok=True)
