"""Own pictures, brought to a live model.

A picture of the index is answered as its row is; of others plain PyTorch with forward hooks is the
oracle, one picture a forward as the index was made.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import grpc
import numpy as np
import oracle
import pytest
from lives import KEPT, LAYERS, OTHER, LiveIndex, analyze, map_of, values_of
from pictures import BAD, jpeg, noise
from PIL import Image
from server.refusals import refused

from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub


@pytest.mark.parametrize("measure", [pb.MEASURE_VALUE, pb.MEASURE_PERCENTILE])
@pytest.mark.parametrize(
    "pooling", [index_pb2.POOLING_MEAN, index_pb2.POOLING_MAX, index_pb2.POOLING_CLS]
)
def test_a_picture_of_the_index_is_answered_as_its_row(
    live: LiveIndex,
    live_stub: ActivationServiceStub,
    measure: pb.Measure.ValueType,
    pooling: index_pb2.Pooling.ValueType,
) -> None:
    for row in (live.good_rows[0], live.good_rows[-1]):
        own = analyze(
            live_stub, live.files[row].read_bytes(), pooling=pooling, measure=measure, channels=50
        )
        stored = live_stub.TopChannels(
            pb.TopChannelsRequest(row=row, pooling=pooling, measure=measure, k=50)
        )
        assert list(own.channels) == list(stored.channels)
        assert own.same_as_row == row
        assert own.generation == live.generation.name
        [image] = next(iter(live_stub.GetImages(pb.GetImagesRequest(rows=[row])))).images
        assert own.image.jpeg == image.jpeg
        assert own.image.view == image.view
        assert (own.image.width, own.image.height) == (image.width, image.height)
        assert (own.image.row, own.image.key, own.image.valid) == (0, "", True)
        names = [layer.name for layer in live.generation.manifest.layers]
        assert [each.layer for each in own.neighbours] == names
        for near in own.neighbours:
            similar = live_stub.SimilarImages(
                pb.SimilarImagesRequest(layer=near.layer, row=row, k=8)
            )
            first, *rest = near.images
            assert first.row == row
            assert first.score == pytest.approx(1, abs=1e-6)
            assert [each.row for each in rest] == [each.row for each in similar.images]


def test_another_picture_is_answered_as_by_plain_hooks(
    live: LiveIndex, live_stub: ActivationServiceStub, tmp_path: Path
) -> None:
    file = tmp_path / "own.png"
    noise(77, height=200, width=120).save(file)
    [truth] = live.activations([file])
    wanted = [pb.ChannelSelector(layer=name, channel=c) for name in (KEPT, OTHER) for c in (5, 2)]
    own = analyze(
        live_stub,
        file.read_bytes(),
        layers=[KEPT, OTHER],
        pooling=index_pb2.POOLING_MAX,
        channels=6,
        neighbours=4,
        maps=wanted,
        include_maps=True,
    )
    assert not own.HasField("same_as_row")
    assert (own.image.width, own.image.height) == (120, 200)
    assert Image.open(io.BytesIO(own.image.jpeg)).size == (160, 160)

    flat = [
        (-score, depth, channel)
        for depth, name in enumerate(LAYERS)
        for channel, score in enumerate(oracle.pooled(truth[name][None], 1, "max")[0].tolist())
    ]
    best = [(LAYERS[depth], channel, -score) for score, depth, channel in sorted(flat)[:6]]
    assert [(each.layer, each.channel, each.score) for each in own.channels] == best

    asked = [(name, c) for name, c, _ in best] + [(each.layer, each.channel) for each in wanted]
    got = [
        (maps.layer, channel, values)
        for maps in own.maps
        for channel, values in zip(maps.channels, values_of(maps), strict=True)
    ]
    assert [each[:2] for each in got] == asked
    for name, channel, values in got:
        assert np.array_equal(values, map_of(truth[name], channel))
    assert all(not maps.rows and maps.source == pb.MAP_SOURCE_RECOMPUTED for maps in own.maps)
    layers = [maps.layer for maps in own.maps]
    assert all(one != other for one, other in pairwise(layers))

    assert [near.layer for near in own.neighbours] == list(LAYERS)
    for near in own.neighbours:
        mine = oracle.pooled(truth[near.layer][None], 1, "mean")[0].astype(np.float64)
        theirs = np.stack([live.truth[row][near.layer] for row in live.good_rows])
        vectors = oracle.pooled(theirs, 1, "mean").astype(np.float64)
        cosines = vectors @ mine / np.linalg.norm(vectors, axis=1) / np.linalg.norm(mine)
        order = np.argsort(-cosines, kind="stable")[:4]
        assert [each.row for each in near.images] == [live.good_rows[at] for at in order]
        assert np.allclose([each.score for each in near.images], cosines[order], atol=1e-5)


def test_nothing_asked_for_is_nothing_answered(
    live: LiveIndex, blind_stub: ActivationServiceStub
) -> None:
    """An own picture needs none of the index's."""
    data = live.files[-1].read_bytes()
    own = analyze(blind_stub, data, channels=0, neighbours=0, include_maps=True)
    assert not own.channels
    assert not own.neighbours
    assert not own.maps
    assert own.image.jpeg
    assert own.same_as_row == live.good_rows[-1]


def test_orientation_is_ignored_as_in_the_index(
    live: LiveIndex, live_stub: ActivationServiceStub
) -> None:
    plain = noise(78, height=90, width=120)
    exif = plain.getexif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    plain.save(turned, "JPEG", quality=92, exif=exif)
    one, other = analyze(live_stub, jpeg(plain)), analyze(live_stub, turned.getvalue())
    assert list(one.channels) == list(other.channels)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_as_when_indexed(
    live: LiveIndex, live_stub: ActivationServiceStub, name: str
) -> None:
    code, details = refused(lambda: analyze(live_stub, BAD[name]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("picture")
    record = live.generation.rows.record(list(BAD).index(name))
    assert record.reason in details or not BAD[name]


def test_many_ask_at_once(live: LiveIndex, live_stub: ActivationServiceStub) -> None:
    """Forwards wait for each other, and nothing gets mixed up."""
    files = [live.files[row].read_bytes() for row in live.good_rows] * 2
    alone = [analyze(live_stub, data) for data in files]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda data: analyze(live_stub, data), files))
    assert together == alone
