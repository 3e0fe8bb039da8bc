"""What the index did not keep, computed again by the live model.

The oracle is plain PyTorch with forward hooks on the same files. The index was made with one
picture a forward, as the live model then runs them, so that answers are equal to the bit: at
another size of the batch matrix products may round differently, and so then may float16.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from lives import LAYERS, OTHER, SIDE, LiveIndex, analyze, map_of, values_of
from pictures import jpeg, noise, write_pictures
from runs import tiny
from server.refusals import refused
from started import ServerProcess

from vitscope.indexer.run import index
from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]


def selectors(live: LiveIndex, channels: tuple[int, ...]) -> list[pb.PatchMapSelector]:
    """Every map of these channels, layers and rows taking turns."""
    return [
        pb.PatchMapSelector(layer=layer, channel=channel, row=row)
        for row in live.good_rows
        for channel in channels
        for layer in LAYERS
    ]


def test_the_index_says_that_its_model_is_live(
    live_stub: ActivationServiceStub, synthetic_server: str
) -> None:
    assert live_stub.GetIndex(pb.GetIndexRequest()).index.live_model
    assert live_stub.ListIndexes(pb.ListIndexesRequest()).indexes[0].live_model
    with grpc.insecure_channel(synthetic_server) as channel:
        assert not ActivationServiceStub(channel).GetIndex(pb.GetIndexRequest()).index.live_model


def test_maps_kept_or_not_are_those_of_plain_hooks(
    live: LiveIndex, live_stub: ActivationServiceStub
) -> None:
    asked = selectors(live, (0, 7, 100))
    found = []
    sources: dict[int, int] = {}
    for reply in live_stub.GetPatchMaps(pb.GetPatchMapsRequest(maps=asked)):
        assert reply.generation == live.generation.name
        maps = reply.maps
        for values, row, channel in zip(values_of(maps), maps.rows, maps.channels, strict=True):
            found.append((maps.layer, channel, row))
            assert np.array_equal(values, map_of(live.truth[row][maps.layer], channel))
            kept = row in live.kept(maps.layer, channel)
            assert maps.source == (pb.MAP_SOURCE_KEPT if kept else pb.MAP_SOURCE_RECOMPUTED)
            sources[maps.source] = sources.get(maps.source, 0) + 1
    assert found == [(each.layer, each.channel, each.row) for each in asked]
    assert min(sources[pb.MAP_SOURCE_KEPT], sources[pb.MAP_SOURCE_RECOMPUTED]) > 5


def test_grids_and_bytes(live: LiveIndex, live_stub: ActivationServiceStub) -> None:
    rows = live.good_rows[::-1] * 2
    grid = pb.PatchMapGrid(layer=OTHER, rows=rows, channels=[3, 3, 9])
    request = pb.GetPatchMapsRequest(grids=[grid], encoding=pb.MAP_ENCODING_UINT8)
    places = [(row, channel) for row in rows for channel in (3, 3, 9)]
    for reply in live_stub.GetPatchMaps(request):
        maps = reply.maps
        codes = np.frombuffer(maps.values, np.uint8).reshape(-1, SIDE, SIDE)
        for code, scale, offset in zip(codes, maps.scale, maps.offset, strict=True):
            row, channel = places.pop(0)
            truth = map_of(live.truth[row][OTHER], channel).astype(np.float64)
            assert np.abs(offset + scale * code - truth).max() <= scale * 0.51
    assert not places


def test_without_pictures_maps_that_were_not_kept_are_refused(
    live: LiveIndex, blind_stub: ActivationServiceStub
) -> None:
    request = pb.GetPatchMapsRequest(maps=selectors(live, (0,)))
    code, details = refused(lambda: list(blind_stub.GetPatchMaps(request)))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "was not kept" in details
    assert "--live and --data" in details
    code, details = refused(
        lambda: blind_stub.TopChannels(
            pb.TopChannelsRequest(row=5, layers=[OTHER], patch=pb.PatchPlace(y=1, x=2))
        )
    )
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "--live and --data" in details


@pytest.mark.parametrize("percentiles", [False, True])
def test_channels_of_a_patch_that_was_not_kept(
    live: LiveIndex, live_stub: ActivationServiceStub, percentiles: bool
) -> None:
    row = live.good_rows[2]
    request = pb.TopChannelsRequest(
        row=row,
        patch=pb.PatchPlace(y=3, x=4),
        k=12,
        measure=pb.MEASURE_PERCENTILE if percentiles else pb.MEASURE_VALUE,
    )
    expected = []
    for depth, layer in enumerate(live.generation.manifest.layers):
        scores = live.truth[row][layer.name][1 + 3 * SIDE + 4].astype(np.float16)
        strongest = np.stack([live.truth[each][layer.name][1:].max(0) for each in live.good_rows])
        shares = (strongest.astype(np.float16) < scores).mean(0)
        for channel, (score, share) in enumerate(zip(scores.tolist(), shares, strict=True)):
            keys = (-share, -score) if percentiles else (-score,)
            expected.append((*keys, depth, channel))
    found = live_stub.TopChannels(request).channels
    names = [layer.name for layer in live.generation.manifest.layers]
    assert [(names.index(each.layer), each.channel) for each in found] == [
        each[-2:] for each in sorted(expected)[:12]
    ]


def test_channels_of_a_rectangle_that_was_not_kept(
    live: LiveIndex, live_stub: ActivationServiceStub
) -> None:
    row = live.good_rows[4]
    # The left half of what the model sees.
    x0, y0, x1, y1 = live.generation.rows.view(row) or (0, 0, 0, 0)
    half = pb.Rectangle(x0=x0, y0=y0, x1=(x0 + x1) / 2, y1=y1)
    patches = live.truth[row][OTHER][1:].astype(np.float16).astype(np.float64)
    grid = patches.reshape(SIDE, SIDE, -1)
    contrast = grid[:, :5].mean((0, 1)) - grid[:, 5:].mean((0, 1))
    found = live_stub.TopChannels(
        pb.TopChannelsRequest(row=row, layers=[OTHER], rectangle=half, k=5)
    ).channels
    assert [each.channel for each in found] == np.argsort(-contrast)[:5].tolist()
    assert np.allclose([each.score for each in found], np.sort(-contrast)[:5] * -1, rtol=1e-5)


def test_pictures_that_changed_since_are_not_answered_from(
    live: LiveIndex, serve: Serve, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(live.pictures, tmp_path / "moved"))
    options = (*live.options[:4], str(moved))
    with grpc.insecure_channel(serve(live.path, options=options).address) as channel:
        stub = ActivationServiceStub(channel)
        changed, gone, sound = live.good_rows[:3]
        lost = [moved / live.files[row].relative_to(live.pictures) for row in (changed, gone)]
        lost[0].write_bytes(lost[1].read_bytes())
        lost[1].unlink()

        def channels_of(row: int) -> pb.TopChannelsResponse:
            patch = pb.PatchPlace(y=0, x=0)
            return stub.TopChannels(pb.TopChannelsRequest(row=row, layers=[OTHER], patch=patch))

        code, details = refused(lambda: channels_of(changed))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert f"row {changed} is not the one that was indexed" in details
        code, details = refused(lambda: channels_of(gone))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert f"row {gone} cannot be read again" in details
        assert str(tmp_path) not in details
        assert channels_of(sound).channels
        grid = pb.PatchMapGrid(layer=OTHER, rows=live.good_rows, channels=[0, 1, 2])
        request = pb.GetPatchMapsRequest(grids=[grid])
        code, details = refused(lambda: list(stub.GetPatchMaps(request)))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert details.startswith("grids.rows: the picture of row ")


@pytest.fixture(scope="module")
def many(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActivationServiceStub]:
    """A server over more pictures than one request may have run again, in batches; own weights."""
    folder = tmp_path_factory.mktemp("many")
    write_pictures(folder / "pictures", 260)
    options = tiny(folder / "pictures", folder / "index", batch_size=32, unit_rows=32, top_k=1)
    index(options)
    server = serve(folder / "index", options=("--live", "--data", str(folder / "pictures")))
    with grpc.insecure_channel(server.address) as channel:
        yield ActivationServiceStub(channel)


def test_so_many_rows_are_computed_again_and_no_more(many: ActivationServiceStub) -> None:
    # The one kept map may be that of the top row of some pooling.
    tops = {
        many.TopImages(pb.TopImagesRequest(layer=OTHER, channel=3, pooling=each, k=1)).images[0].row
        for each in index_pb2.Pooling.values()[1:]
    }
    lost = [row for row in range(260) if row not in tops]
    request = pb.GetPatchMapsRequest(
        grids=[pb.PatchMapGrid(layer=OTHER, rows=lost[:256], channels=[3])]
    )
    replies = list(many.GetPatchMaps(request))
    assert [row for reply in replies for row in reply.maps.rows] == lost[:256]
    # A forward each, so that whoever goes away is noticed.
    assert max(len(reply.maps.rows) for reply in replies) <= 32
    # The mean of a map is the stored score. Both were rounded to float16, and pictures stood in
    # other places of their batches, which may move the last bits of a matrix product.
    maps = np.concatenate([values_of(each.maps) for each in replies])
    means = maps.astype(np.float64).mean((1, 2))
    stored = many.TopImages(
        pb.TopImagesRequest(layer=OTHER, channel=3, k=260, filter=pb.ImageFilter(rows=lost[:256]))
    ).images
    scores = {each.row: each.score for each in stored}
    assert np.allclose(means, [scores[row] for row in lost[:256]], rtol=2e-3, atol=1e-4)
    request.grids[0].rows.append(lost[256])
    code, details = refused(lambda: list(many.GetPatchMaps(request)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("maps: 257 rows")


def test_a_caller_who_goes_away(many: ActivationServiceStub) -> None:
    grid = pb.PatchMapGrid(layer=OTHER, rows=range(200), channels=[3])
    for _ in range(3):
        call: Any = many.GetPatchMaps(pb.GetPatchMapsRequest(grids=[grid]))
        next(call)
        call.cancel()
    code, _ = refused(lambda: next(call))
    assert code == grpc.StatusCode.CANCELLED
    short: Any = many.AnalyzeImage
    code, _ = refused(lambda: short(pb.AnalyzeImageRequest(picture=jpeg(noise(1))), timeout=1e-3))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert analyze(many, jpeg(noise(1))).channels
