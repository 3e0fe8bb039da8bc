"""Generated questions over the wire, against brute force over the dense activations.

`VITSCOPE_REQUESTS` says how many of each kind.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import ServerProcess, Synthetic, build

from vitscope.store.boxes import Box
from vitscope.store.manifest import Pooling
from vitscope.store.rows import RowRecord
from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

ROWS = 70
DENSE, SPARSE = "blocks.0.mlp", "blocks.1.mlp"
CHANNELS = {DENSE: 5, SPARSE: 9}
KEPT = {DENSE: 3, SPARSE: 4}
POOLINGS: dict[str, tuple[Pooling, ...]] = {DENSE: ("mean", "max", "cls"), SPARSE: ("mean", "max")}
PREFIX = {DENSE: 2, SPARSE: 0}
GRID = {DENSE: (2, 2), SPARSE: (2, 1)}
LABELS = ("fox", "café", "белка", "🦊 fennec")
BOX_LABELS = ("tail", "ear")
NUMBERS: dict[Pooling, index_pb2.Pooling.ValueType] = {
    "mean": index_pb2.POOLING_MEAN,
    "max": index_pb2.POOLING_MAX,
    "cls": index_pb2.POOLING_CLS,
}
NOT_KEPT = grpc.StatusCode.FAILED_PRECONDITION

each = settings(
    max_examples=int(os.environ.get("VITSCOPE_REQUESTS", "150")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def boxes_of(generator: np.random.Generator, record: RowRecord) -> tuple[Box, ...]:
    """None, one or two within the picture, with and without labels."""
    found = []
    for _ in range(int(generator.integers(3))):
        x0, y0 = generator.uniform(0, 6, 2).round(2).tolist()
        width, height = generator.uniform(1, 4, 2).round(2).tolist()
        label = (None, *BOX_LABELS)[int(generator.integers(3))]
        corners = np.array([x0, y0, x0 + width, y0 + height], np.float32).tolist()
        found.append(Box(label, *corners))
    return tuple(found)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return build(
        tmp_path_factory.mktemp("questions") / "zoo", complete=True, boxes=boxes_of, rows=ROWS
    )


@pytest.fixture(scope="module")
def ask(truth: Synthetic, serve: Callable[..., ServerProcess]) -> ActivationServiceStub:
    channel = grpc.insecure_channel(serve(truth.path).address)
    return ActivationServiceStub(channel)


# ---- what images pass, in plain Python


@dataclass(frozen=True)
class Filter:
    labels: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    has_box: bool | None = None
    box_labels: tuple[str, ...] = ()

    def message(self) -> pb.ImageFilter:
        return pb.ImageFilter(
            labels=self.labels, rows=self.rows, has_box=self.has_box, box_labels=self.box_labels
        )

    def passes(self, record: RowRecord) -> bool:
        named = {box.label for box in record.boxes}
        return (
            record.valid
            and (not self.labels or record.label in self.labels)
            and (not self.rows or record.row in self.rows)
            and (self.has_box is None or bool(record.boxes) == self.has_box)
            and (not self.box_labels or bool(named & set(self.box_labels)))
        )

    def rows_of(self, truth: Synthetic) -> list[int]:
        return [record.row for record in truth.records if self.passes(record)]


def filters() -> st.SearchStrategy[Filter]:
    some = st.builds(
        Filter,
        labels=st.lists(st.sampled_from(LABELS), max_size=2).map(tuple),
        rows=st.lists(st.integers(0, ROWS - 1), max_size=30).map(tuple),
        has_box=st.sampled_from([None, None, True]),
        box_labels=st.lists(st.sampled_from(BOX_LABELS), max_size=2).map(tuple),
    )
    without = st.builds(Filter, has_box=st.just(False))
    return st.just(Filter()) | some | without


@dataclass(frozen=True)
class Channel:
    layer: str
    channel: int
    pooling: Pooling


CHOSEN = st.sampled_from(
    [
        Channel(layer, channel, pooling)
        for layer, count in CHANNELS.items()
        for channel in range(count)
        for pooling in POOLINGS[layer]
    ]
)
KS = st.none() | st.integers(1, 65)


def usual(k: int | None, most: int) -> int:
    return min(20, most) if k is None else k


def rows_and_scores(images: Iterable[pb.ScoredImage]) -> list[tuple[int, float]]:
    return [(image.row, image.score) for image in images]


def column_of(truth: Synthetic, chosen: Channel) -> npt.NDArray[np.float64]:
    return truth.scores(chosen.layer, chosen.pooling)[:, chosen.channel].astype(np.float64)


# ---- top images


def request_for(chosen: Channel, k: int | None, where: Filter, **more: Any) -> pb.TopImagesRequest:
    return pb.TopImagesRequest(
        layer=chosen.layer,
        channel=chosen.channel,
        pooling=NUMBERS[chosen.pooling],
        k=k,
        filter=where.message(),
        **more,
    )


@each
@given(chosen=CHOSEN, k=KS, where=filters(), bottom=st.booleans(), maps=st.booleans())
def test_top_and_bottom_images(
    truth: Synthetic,
    ask: ActivationServiceStub,
    chosen: Channel,
    k: int | None,
    where: Filter,
    bottom: bool,
    maps: bool,
) -> None:
    order = pb.ORDER_BOTTOM if bottom else pb.ORDER_TOP
    reply = ask.TopImages(request_for(chosen, k, where, order=order, include_maps=maps))
    column, passing = column_of(truth, chosen), where.rows_of(truth)
    sign = 1 if bottom else -1
    expected = sorted(passing, key=lambda row: (sign * column[row], row))[: usual(k, 65)]
    assert rows_and_scores(reply.images) == [(row, column[row]) for row in expected]
    assert (reply.generation, reply.layer, reply.channel) == (
        truth.generation,
        chosen.layer,
        chosen.channel,
    )
    assert reply.pooling == NUMBERS[chosen.pooling]
    assert reply.candidates == len(passing)
    for image in reply.images:
        record = truth.records[image.row]
        assert (image.key, image.label) == (record.key, record.label or "")
        assert not image.HasField("distinctness")
    if not maps:
        assert not reply.HasField("maps")
        return
    kept = kept_rows(truth, chosen.layer, chosen.channel)
    assert list(reply.maps.rows) == [row for row in expected if row in kept]
    values = np.frombuffer(reply.maps.values, "<f2").reshape(-1, *GRID[chosen.layer])
    assert np.array_equal(values, truth.maps(chosen.layer)[list(reply.maps.rows), chosen.channel])


def kept_rows(truth: Synthetic, layer: str, channel: int) -> set[int]:
    """Rows whose map of a channel is stored."""
    if layer == DENSE:
        return set(range(ROWS))
    rankings = [truth.ranking(layer, pooling, channel) for pooling in POOLINGS[layer]]
    return {row for ranking in rankings for row, _ in ranking[: KEPT[layer]]}


LEVELS = st.integers(0, 16).map(lambda sixteenths: sixteenths / 16) | st.floats(0, 1)


@each
@given(chosen=CHOSEN, k=KS, where=filters(), ends=st.tuples(LEVELS, LEVELS), bottom=st.booleans())
def test_a_band_of_quantiles(
    truth: Synthetic,
    ask: ActivationServiceStub,
    chosen: Channel,
    k: int | None,
    where: Filter,
    ends: tuple[float, float],
    bottom: bool,
) -> None:
    low, high = sorted(ends)
    order = pb.ORDER_BOTTOM if bottom else pb.ORDER_TOP
    band = pb.QuantileBand(low=low, high=high)
    reply = ask.TopImages(request_for(chosen, k, where, order=order, band=band))
    column, passing = column_of(truth, chosen), where.rows_of(truth)
    assert reply.candidates == len(passing)
    if not passing:
        assert not reply.images
        return
    bars = [quantile([column[row] for row in passing], level) for level in (low, high)]
    inside = [row for row in passing if bars[0] <= column[row] <= bars[1]]
    sign = 1 if bottom else -1
    expected = sorted(inside, key=lambda row: (sign * column[row], row))[: usual(k, 65)]
    assert rows_and_scores(reply.images) == [(row, column[row]) for row in expected]


def quantile(values: Sequence[float], level: float) -> float:
    """The smallest value that at least a share of `level` does not exceed."""
    for value in sorted(values):
        share = sum(other <= value for other in values) / len(values)
        if share >= level - 1e-9:
            return value
    raise AssertionError("no level is above 1")


@each
@given(chosen=CHOSEN, k=KS, where=filters())
def test_distinct_images(
    truth: Synthetic, ask: ActivationServiceStub, chosen: Channel, k: int | None, where: Filter
) -> None:
    reply = ask.TopImages(request_for(chosen, k, where, distinct=True))
    column, passing = column_of(truth, chosen), where.rows_of(truth)
    valid = column[truth.valid]
    hubs = dict.fromkeys(range(ROWS), 0)
    channels = CHANNELS[chosen.layer]
    for channel in range(channels):
        for row, _ in truth.ranking(chosen.layer, chosen.pooling, channel)[: KEPT[chosen.layer]]:
            hubs[row] += channel != chosen.channel
    standing = {}
    for row in passing:
        deviation = math.sqrt(((valid - valid.mean()) ** 2).mean())
        z = (column[row] - valid.mean()) / deviation if deviation else 0.0
        weight = math.log((1 + channels) / (1 + hubs[row])) / math.log(1 + channels)
        standing[row] = z * weight if z > 0 else z
    got = [(image.distinctness.score, image.row) for image in reply.images]
    assert got == sorted(got, key=lambda pair: (-pair[0], pair[1]))
    assert len({row for _, row in got}) == min(len(passing), usual(k, 65))
    for image in reply.images:
        assert image.score == column[image.row]
        assert image.distinctness.hubs == hubs[image.row]
        assert image.distinctness.score == pytest.approx(standing[image.row], abs=1e-9)
    others = [standing[row] for row in passing if row not in {row for _, row in got}]
    if got and others:
        assert max(others) <= got[-1][0] + 1e-9


@each
@given(
    layer=st.sampled_from([DENSE, SPARSE]),
    channels=st.none() | st.lists(st.integers(0, 4), min_size=1, max_size=5),
    k=KS,
    where=filters(),
    more=st.sampled_from(
        [
            {},
            {"include_maps": True},
            {"order": pb.ORDER_BOTTOM},
            {"distinct": True},
            {"band": pb.QuantileBand(low=0.25, high=0.5)},
        ]
    ),
)
def test_several_channels_are_answered_as_one_by_one(
    ask: ActivationServiceStub,
    layer: str,
    channels: list[int] | None,
    k: int | None,
    where: Filter,
    more: dict[str, Any],
) -> None:
    request = pb.TopImagesOfChannelsRequest(
        layer=layer, channels=channels or (), k=k, filter=where.message(), **more
    )
    replies = list(ask.TopImagesOfChannels(request))
    wanted = range(CHANNELS[layer]) if channels is None else channels
    one_by_one = [
        ask.TopImages(request_for(Channel(layer, channel, "mean"), k, where, **more))
        for channel in wanted
    ]
    assert replies == one_by_one


# ---- maps


@each
@given(
    grids=st.lists(
        st.tuples(
            st.lists(st.sampled_from([1, 2, 5, 40, 68]), max_size=4),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=3,
    ),
    selectors=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1, 8, 64])), max_size=4),
    small=st.booleans(),
)
def test_grids_of_patch_maps(
    truth: Synthetic,
    ask: ActivationServiceStub,
    grids: list[tuple[list[int], list[int]]],
    selectors: list[tuple[int, int]],
    small: bool,
) -> None:
    request = pb.GetPatchMapsRequest(
        maps=[pb.PatchMapSelector(layer=DENSE, channel=c, row=row) for c, row in selectors],
        grids=[pb.PatchMapGrid(layer=DENSE, rows=rows, channels=chosen) for rows, chosen in grids],
        encoding=pb.MAP_ENCODING_UINT8 if small else pb.MAP_ENCODING_UNSPECIFIED,
    )
    wanted = [(row, channel) for channel, row in selectors]
    wanted += [(row, channel) for rows, chosen in grids for row in rows for channel in chosen]
    if not wanted:
        with pytest.raises(grpc.RpcError, match="maps is empty"):
            list(ask.GetPatchMaps(request))
        return
    [reply] = ask.GetPatchMaps(request)
    maps = reply.maps
    assert list(zip(maps.rows, maps.channels, strict=True)) == wanted
    assert maps.source == pb.MAP_SOURCE_KEPT
    expected = np.stack([truth.maps(DENSE)[row, channel] for row, channel in wanted])
    if not small:
        assert maps.encoding == pb.MAP_ENCODING_FLOAT16
        assert maps.values == expected.tobytes()
        return
    assert maps.encoding == pb.MAP_ENCODING_UINT8
    codes = np.frombuffer(maps.values, np.uint8).reshape(expected.shape).astype(np.float64)
    for one, code, scale, offset in zip(expected, codes, maps.scale, maps.offset, strict=True):
        wide = one.astype(np.float64)
        assert scale == pytest.approx((wide.max() - wide.min()) / 255)
        assert np.abs(offset + scale * code - wide).max() <= scale / 2 * (1 + 1e-4)
        assert offset == wide.min()


# ---- patches


@each
@given(
    layer=st.sampled_from([DENSE, SPARSE]),
    channel=st.integers(0, 4),
    k=st.none() | st.integers(1, 12) | st.integers(1, 130),
    where=filters(),
)
def test_top_patches(
    truth: Synthetic,
    ask: ActivationServiceStub,
    layer: str,
    channel: int,
    k: int | None,
    where: Filter,
) -> None:
    request = pb.TopPatchesRequest(layer=layer, channel=channel, k=k, filter=where.message())
    maps, passing = truth.maps(layer)[:, channel], where.rows_of(truth)
    count = usual(k, 65 * GRID[layer][0] * GRID[layer][1])
    strongest = sorted(passing, key=lambda row: (-maps[row].max(), row))[:count]
    if set(strongest) - kept_rows(truth, layer, channel):
        with pytest.raises(grpc.RpcError) as caught:
            ask.TopPatches(request)
        assert caught.value.code() == NOT_KEPT
        return
    reply = ask.TopPatches(request)
    expected = sorted(
        (-float(maps[row, y, x]), row, y, x)
        for row in passing
        for y in range(GRID[layer][0])
        for x in range(GRID[layer][1])
    )[:count]
    assert [(-p.score, p.row, p.y, p.x) for p in reply.patches] == expected
    tokens = truth.layers[layer].tokens
    for patch in reply.patches:
        record = truth.records[patch.row]
        assert (patch.key, patch.label) == (record.key, record.label or "")
        source = patch.source
        assert [source.x0, source.y0, source.x1, source.y1] == pytest.approx(
            corners_of(tokens, record, patch.y, patch.x), abs=1e-4
        )
    assert (reply.grid.cell_height, reply.grid.top) == (tokens.cell_height, tokens.top)


def corners_of(tokens: Any, record: RowRecord, y: int, x: int) -> list[float]:
    """What a patch covers of the source picture; the input is 48 by 80 pixels."""
    assert record.view is not None
    left, upper, right, lower = record.view
    return [
        left + (tokens.left + tokens.cell_width * x) / 80 * (right - left),
        upper + (tokens.top + tokens.cell_height * y) / 48 * (lower - upper),
        left + (tokens.left + tokens.cell_width * (x + 1)) / 80 * (right - left),
        upper + (tokens.top + tokens.cell_height * (y + 1)) / 48 * (lower - upper),
    ]


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
    for other in set(range(5)) - {each.channel for each in channels}:
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
