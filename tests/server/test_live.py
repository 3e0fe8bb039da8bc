"""The live model: what the index did not keep, own pictures, and what keeps a server from starting.

The oracle is plain PyTorch with forward hooks on the same files. The index was made with one
picture a forward, as the live model then runs them, so that answers are equal to the bit: at
another size of the batch matrix products may round differently, and so then may float16.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import oracle
import pytest
from lives import KEPT, OTHER, LiveIndex
from pictures import BAD, jpeg, noise, write_pictures
from PIL import Image
from runs import tiny
from safetensors.torch import load_file, save_file
from sources import Item, write_tars
from synthetic import ServerProcess, run_vitscope

from vitscope.indexer.run import index
from vitscope.server.app import load_live
from vitscope.server.errors import StartError
from vitscope.server.liveoptions import LiveOptions
from vitscope.store.generation import Generation, open_generation
from vitscope.store.manifest import Manifest
from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]
LAYERS = (OTHER, KEPT)
SIDE = 10
"""Patches along either side of the grid; one class token goes before them."""


@pytest.fixture(scope="module")
def stub(live_server: str) -> Iterator[ActivationServiceStub]:
    with grpc.insecure_channel(live_server) as channel:
        yield ActivationServiceStub(channel)


@pytest.fixture(scope="module")
def blind(live: LiveIndex, serve: Serve) -> Iterator[ActivationServiceStub]:
    """A server with the model but without the pictures."""
    server = serve(live.path, options=live.options[:3])
    with grpc.insecure_channel(server.address) as channel:
        yield ActivationServiceStub(channel)


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


def values_of(maps: pb.PatchMaps) -> npt.NDArray[np.float16]:
    return np.frombuffer(maps.values, "<f2").reshape(-1, maps.height, maps.width)


def map_of(activations: oracle.Floats, channel: int) -> npt.NDArray[np.float16]:
    return activations[1:, channel].astype(np.float16).reshape(SIDE, SIDE)


def selectors(live: LiveIndex, channels: tuple[int, ...]) -> list[pb.PatchMapSelector]:
    """Every map of these channels, layers and rows taking turns."""
    return [
        pb.PatchMapSelector(layer=layer, channel=channel, row=row)
        for row in live.good_rows
        for channel in channels
        for layer in LAYERS
    ]


def test_the_index_says_that_its_model_is_live(
    stub: ActivationServiceStub, synthetic_server: str
) -> None:
    assert stub.GetIndex(pb.GetIndexRequest()).index.live_model
    assert stub.ListIndexes(pb.ListIndexesRequest()).indexes[0].live_model
    with grpc.insecure_channel(synthetic_server) as channel:
        assert not ActivationServiceStub(channel).GetIndex(pb.GetIndexRequest()).index.live_model


def test_maps_kept_or_not_are_those_of_plain_hooks(
    live: LiveIndex, stub: ActivationServiceStub
) -> None:
    asked = selectors(live, (0, 7, 100))
    found = []
    sources: dict[int, int] = {}
    for reply in stub.GetPatchMaps(pb.GetPatchMapsRequest(maps=asked)):
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


def test_grids_and_bytes(live: LiveIndex, stub: ActivationServiceStub) -> None:
    rows = live.good_rows[::-1] * 2
    grid = pb.PatchMapGrid(layer=OTHER, rows=rows, channels=[3, 3, 9])
    request = pb.GetPatchMapsRequest(grids=[grid], encoding=pb.MAP_ENCODING_UINT8)
    places = [(row, channel) for row in rows for channel in (3, 3, 9)]
    for reply in stub.GetPatchMaps(request):
        maps = reply.maps
        codes = np.frombuffer(maps.values, np.uint8).reshape(-1, SIDE, SIDE)
        for code, scale, offset in zip(codes, maps.scale, maps.offset, strict=True):
            row, channel = places.pop(0)
            truth = map_of(live.truth[row][OTHER], channel).astype(np.float64)
            assert np.abs(offset + scale * code - truth).max() <= scale * 0.51
    assert not places


def test_without_pictures_maps_that_were_not_kept_are_refused(
    live: LiveIndex, blind: ActivationServiceStub
) -> None:
    request = pb.GetPatchMapsRequest(maps=selectors(live, (0,)))
    code, details = refusal(lambda: list(blind.GetPatchMaps(request)))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "was not kept" in details
    assert "--live and --data" in details
    code, details = refusal(
        lambda: blind.TopChannels(
            pb.TopChannelsRequest(row=5, layers=[OTHER], patch=pb.PatchPlace(y=1, x=2))
        )
    )
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "--live and --data" in details


@pytest.mark.parametrize("percentiles", [False, True])
def test_channels_of_a_patch_that_was_not_kept(
    live: LiveIndex, stub: ActivationServiceStub, percentiles: bool
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
    found = stub.TopChannels(request).channels
    names = [layer.name for layer in live.generation.manifest.layers]
    assert [(names.index(each.layer), each.channel) for each in found] == [
        each[-2:] for each in sorted(expected)[:12]
    ]


def test_channels_of_a_rectangle_that_was_not_kept(
    live: LiveIndex, stub: ActivationServiceStub
) -> None:
    row = live.good_rows[4]
    # The left half of what the model sees.
    x0, y0, x1, y1 = live.generation.rows.view(row) or (0, 0, 0, 0)
    half = pb.Rectangle(x0=x0, y0=y0, x1=(x0 + x1) / 2, y1=y1)
    patches = live.truth[row][OTHER][1:].astype(np.float16).astype(np.float64)
    grid = patches.reshape(SIDE, SIDE, -1)
    contrast = grid[:, :5].mean((0, 1)) - grid[:, 5:].mean((0, 1))
    found = stub.TopChannels(
        pb.TopChannelsRequest(row=row, layers=[OTHER], rectangle=half, k=5)
    ).channels
    assert [each.channel for each in found] == np.argsort(-contrast)[:5].tolist()
    assert np.allclose([each.score for each in found], np.sort(-contrast)[:5] * -1, rtol=1e-5)


def analyze(stub: ActivationServiceStub, data: bytes, **fields: Any) -> pb.AnalyzeImageResponse:
    return stub.AnalyzeImage(pb.AnalyzeImageRequest(picture=data, **fields), timeout=60)


@pytest.mark.parametrize("measure", [pb.MEASURE_VALUE, pb.MEASURE_PERCENTILE])
@pytest.mark.parametrize(
    "pooling", [index_pb2.POOLING_MEAN, index_pb2.POOLING_MAX, index_pb2.POOLING_CLS]
)
def test_a_picture_of_the_index_is_answered_as_its_row(
    live: LiveIndex,
    stub: ActivationServiceStub,
    measure: pb.Measure.ValueType,
    pooling: index_pb2.Pooling.ValueType,
) -> None:
    for row in (live.good_rows[0], live.good_rows[-1]):
        own = analyze(
            stub, live.files[row].read_bytes(), pooling=pooling, measure=measure, channels=50
        )
        stored = stub.TopChannels(
            pb.TopChannelsRequest(row=row, pooling=pooling, measure=measure, k=50)
        )
        assert list(own.channels) == list(stored.channels)
        assert own.same_as_row == row
        assert own.generation == live.generation.name
        [image] = next(iter(stub.GetImages(pb.GetImagesRequest(rows=[row])))).images
        assert own.image.jpeg == image.jpeg
        assert own.image.view == image.view
        assert (own.image.width, own.image.height) == (image.width, image.height)
        assert (own.image.row, own.image.key, own.image.valid) == (0, "", True)
        names = [layer.name for layer in live.generation.manifest.layers]
        assert [each.layer for each in own.neighbours] == names
        for near in own.neighbours:
            similar = stub.SimilarImages(pb.SimilarImagesRequest(layer=near.layer, row=row, k=8))
            first, *rest = near.images
            assert first.row == row
            assert first.score == pytest.approx(1, abs=1e-6)
            assert [each.row for each in rest] == [each.row for each in similar.images]


def test_another_picture_is_answered_as_by_plain_hooks(
    live: LiveIndex, stub: ActivationServiceStub, tmp_path: Path
) -> None:
    file = tmp_path / "own.png"
    noise(77, height=200, width=120).save(file)
    [truth] = live.activations([file])
    wanted = [pb.ChannelSelector(layer=name, channel=c) for name in (KEPT, OTHER) for c in (5, 2)]
    own = analyze(
        stub,
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
    live: LiveIndex, blind: ActivationServiceStub
) -> None:
    """An own picture needs none of the index's."""
    data = live.files[-1].read_bytes()
    own = analyze(blind, data, channels=0, neighbours=0, include_maps=True)
    assert not own.channels
    assert not own.neighbours
    assert not own.maps
    assert own.image.jpeg
    assert own.same_as_row == live.good_rows[-1]


def test_orientation_is_ignored_as_in_the_index(
    live: LiveIndex, stub: ActivationServiceStub
) -> None:
    plain = noise(78, height=90, width=120)
    exif = plain.getexif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    plain.save(turned, "JPEG", quality=92, exif=exif)
    one, other = analyze(stub, jpeg(plain)), analyze(stub, turned.getvalue())
    assert list(one.channels) == list(other.channels)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_as_when_indexed(
    live: LiveIndex, stub: ActivationServiceStub, name: str
) -> None:
    code, details = refusal(lambda: analyze(stub, BAD[name]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("picture")
    record = live.generation.rows.record(list(BAD).index(name))
    assert record.reason in details or not BAD[name]


def test_many_ask_at_once(live: LiveIndex, stub: ActivationServiceStub) -> None:
    """Forwards wait for each other, and nothing gets mixed up."""
    files = [live.files[row].read_bytes() for row in live.good_rows] * 2
    alone = [analyze(stub, data) for data in files]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda data: analyze(stub, data), files))
    assert together == alone


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

        code, details = refusal(lambda: channels_of(changed))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert f"row {changed} is not the one that was indexed" in details
        code, details = refusal(lambda: channels_of(gone))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert f"row {gone} cannot be read again" in details
        assert str(tmp_path) not in details
        assert channels_of(sound).channels
        grid = pb.PatchMapGrid(layer=OTHER, rows=live.good_rows, channels=[0, 1, 2])
        request = pb.GetPatchMapsRequest(grids=[grid])
        code, details = refusal(lambda: list(stub.GetPatchMaps(request)))
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
    code, details = refusal(lambda: list(many.GetPatchMaps(request)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("maps: 257 rows")


def test_a_caller_who_goes_away(many: ActivationServiceStub) -> None:
    grid = pb.PatchMapGrid(layer=OTHER, rows=range(200), channels=[3])
    for _ in range(3):
        call: Any = many.GetPatchMaps(pb.GetPatchMapsRequest(grids=[grid]))
        next(call)
        call.cancel()
    code, _ = refusal(lambda: next(call))
    assert code == grpc.StatusCode.CANCELLED
    short: Any = many.AnalyzeImage
    code, _ = refusal(lambda: short(pb.AnalyzeImageRequest(picture=jpeg(noise(1))), timeout=1e-3))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert analyze(many, jpeg(noise(1))).channels


def opened(*paths: Path) -> dict[str, Generation]:
    return {path.name: open_generation(path) for path in paths}


def start_error(paths: Path | list[Path], **options: Any) -> str:
    """Why a server of this process would not start."""
    indexes = opened(*(paths if isinstance(paths, list) else [paths]))
    with pytest.raises(StartError) as caught:
        load_live(indexes, LiveOptions(**options), indexes)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_a_server_that_does_not_start_says_why(live: LiveIndex) -> None:
    for arguments, word in (
        (["--live"], "give it with --checkpoint FILE."),
        (["--data", live.pictures], "--data is for the live model; give --live too."),
    ):
        run = run_vitscope("serve", live.path, *arguments, "--listen", "127.0.0.1:0")
        assert run.returncode == 6
        assert run.stdout == ""
        assert run.stderr.startswith("vitscope: ")
        assert run.stderr.endswith(f"{word}\n")


def test_what_keeps_a_server_from_starting(live: LiveIndex, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    weights = load_file(live.checkpoint)
    weights["norm.bias"] += 1
    save_file(weights, other)
    file, checkpoint = str(live.checkpoint), [str(live.checkpoint)]
    error = start_error(live.path, checkpoints=[str(other)])
    assert "weights at hand are not those" in error
    assert "--checkpoint FILE" in error
    error = start_error(live.path, checkpoints=[str(tmp_path / "none.pth")])
    assert "There is no checkpoint file" in error
    assert "--device" in start_error(live.path, checkpoints=checkpoint, device="abacus")
    assert "--threads" in start_error(live.path, checkpoints=checkpoint, threads=0)
    assert "--split" in start_error(live.path, checkpoints=checkpoint, splits=["train"])
    assert "given twice" in start_error(live.path, checkpoints=[file, file])
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(live.checkpoint.read_bytes()[:1000])
    assert "cannot be loaded" in start_error(live.path, checkpoints=[str(damaged)])


CHANGES: dict[str, Callable[[Manifest], Manifest]] = {
    "transform": lambda manifest: replace(
        manifest,
        model=replace(manifest.model, transform=(*manifest.model.transform[:-1], "Flip()")),
    ),
    "exif": lambda manifest: replace(manifest, model=replace(manifest.model, exif="applied")),
    "token layouts": lambda manifest: replace(
        manifest,
        layers=(
            *manifest.layers[:-1],
            replace(
                manifest.layers[-1], tokens=replace(manifest.layers[-1].tokens, prefix=("reg",))
            ),
        ),
    ),
    "other layers": lambda manifest: replace(manifest, layers=manifest.layers[:-1]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_index_made_otherwise(live: LiveIndex, name: str) -> None:
    """As by another version of timm: the manifest tells of what this one does not do."""
    [(index, generation)] = opened(live.path).items()
    generation.manifest = CHANGES[name](generation.manifest)
    options = LiveOptions(checkpoints=[str(live.checkpoint)])
    with pytest.raises(StartError, match=name):
        load_live([index], options, {index: generation})


def test_other_pictures_than_were_indexed(live: LiveIndex, tmp_path: Path) -> None:
    def error(data: Path) -> str:
        return start_error(live.path, checkpoints=[str(live.checkpoint)], data=[str(data)])

    fewer = Path(shutil.copytree(live.pictures, tmp_path / "fewer"))
    lost = fewer / live.files[live.good_rows[1]].relative_to(live.pictures)
    data = lost.read_bytes()
    lost.write_bytes(data + b"\0")
    assert f"row {live.good_rows[1]} " in error(fewer)
    assert f"has {len(data) + 1} bytes" in error(fewer)
    lost.unlink()
    assert "is not there" in error(fewer)
    assert "There is no folder" in error(tmp_path / "none")
    lost.write_bytes(data)
    shards = write_tars(tmp_path / "shards", [Item("a.jpg", data, "a")], 1)
    assert "is not there" in error(shards)


def test_more_pictures_than_were_indexed_are_no_harm(
    live: LiveIndex, serve: Serve, tmp_path: Path
) -> None:
    """Rows are found by their keys, in whatever order the pictures come."""
    more = Path(shutil.copytree(live.pictures, tmp_path / "more"))
    (more / "0.jpg").write_bytes(jpeg(noise(500)))
    options = (*live.options[:4], str(more))
    with grpc.insecure_channel(serve(live.path, options=options).address) as channel:
        grid = pb.PatchMapGrid(layer=OTHER, rows=live.good_rows, channels=[4])
        request = pb.GetPatchMapsRequest(grids=[grid])
        for reply in ActivationServiceStub(channel).GetPatchMaps(request):
            for values, row in zip(values_of(reply.maps), reply.maps.rows, strict=True):
                assert np.array_equal(values, map_of(live.truth[row][OTHER], 4))


def test_several_indexes_name_what_is_whose(live: LiveIndex, serve: Serve, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(live.path, tmp_path / "twin"))
    error = start_error([live.path, twin], checkpoints=[str(live.checkpoint)])
    assert "NAME=" in error
    assert "live, twin" in error
    given = [f"{name}={live.checkpoint}" for name in ("live", "twin")]
    assert "given twice" in start_error([live.path, twin], checkpoints=[*given, given[0]])
    assert "'twin'" in start_error([live.path, twin], checkpoints=given[:1])
    both = [each for one in given for each in ("--checkpoint", one)]
    server = serve(live.path, twin, options=("--live", *both, "--data", f"twin={live.pictures}"))
    grid = pb.PatchMapGrid(layer=OTHER, rows=live.good_rows, channels=[4])
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        assert list(stub.GetPatchMaps(pb.GetPatchMapsRequest(index="twin", grids=[grid])))
        request = pb.GetPatchMapsRequest(index="live", grids=[grid])
        code, _ = refusal(lambda: list(stub.GetPatchMaps(request)))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert analyze(stub, live.files[-1].read_bytes(), index="live").channels


WITHOUT_TORCH = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm") or name.startswith("vitscope.indexer"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Missing())
from vitscope.client.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_torch_a_server_serves_but_not_live(live: LiveIndex) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "serve", str(live.path)]
    command += ["--listen", "127.0.0.1:0"]
    run = subprocess.run([*command, *live.options], capture_output=True, text=True, timeout=60)
    assert run.returncode == 6, run.stderr
    assert "pip install 'vitscope[server,indexer]'" in run.stderr
    assert "Traceback" not in run.stderr
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().rpartition(" ")[2].strip()
        with grpc.insecure_channel(address) as channel:
            stub = ActivationServiceStub(channel)
            found = stub.GetIndex(pb.GetIndexRequest(), timeout=60).index
            assert not found.live_model
            code, details = refusal(lambda: analyze(stub, live.files[-1].read_bytes()))
            assert code == grpc.StatusCode.FAILED_PRECONDITION
            assert "--live" in details
        server.terminate()
