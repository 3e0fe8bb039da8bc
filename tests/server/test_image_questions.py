"""Generated questions about images, maps and patches, against brute force.

Over the wire, and over the dense activations. `VITSCOPE_REQUESTS` says how many of each kind.
"""

from __future__ import annotations

import math
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server.questions import (
    CHANNELS,
    CHOSEN,
    DENSE,
    GRID,
    KEPT,
    KS,
    NOT_KEPT,
    NUMBERS,
    ROWS,
    SPARSE,
    Channel,
    Filter,
    column_of,
    corners_of,
    each,
    filters,
    kept_rows,
    quantile,
    rows_and_scores,
    usual,
)
from synthetic import Synthetic

from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

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
