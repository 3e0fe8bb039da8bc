"""Own pictures from Python and from the command line, against a server that runs the model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import pytest
from lives import KEPT, OTHER, LiveIndex
from pictures import jpeg, noise
from PIL import Image

from vitscope.client import (
    Client,
    InvalidRequestError,
    NotKeptError,
    ServerError,
    UsageError,
    convert,
)
from vitscope.client.cli import main
from vitscope.v1 import query_pb2

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def own(live_server: str) -> Iterator[Client]:
    with Client(live_server) as opened:
        yield opened


@pytest.fixture
def ask_live(live_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCOPE_SERVER", live_server)


def test_a_picture_by_its_bytes_or_its_path(live: LiveIndex, own: Client) -> None:
    row = live.good_rows[3]
    path = live.files[row]
    maps: list[tuple[str, SupportsIndex]] = [(OTHER, 3), (KEPT, np.int64(1))]
    found = own.analyze_image(
        path, channels=4, neighbours=2, maps=maps, include_maps=True, percentiles=True
    )
    again = own.analyze_image(
        path.read_bytes(), channels=4, neighbours=2, maps=maps, include_maps=True, percentiles=True
    )
    assert found.channels == again.channels == own.top_channels(row, percentiles=True, k=4).channels
    assert found.neighbours == again.neighbours
    assert [near.layer for near in found.neighbours] == [each.name for each in own.index().layers]
    assert {near.images[0].row for near in found.neighbours} == {row}
    assert found.same_as_row == row
    [image] = own.images([row])
    assert (found.jpeg, found.view) == (image.jpeg, image.view)
    assert (found.width, found.height) == (image.width, image.height)
    asked = [*((each.layer, each.channel) for each in found.channels), *maps]
    assert [(each.layer, each.channel) for each in found.maps] == asked
    for each in found.maps:
        stored = own.patch_map(each.layer, each.channel, row)
        assert np.array_equal(each.values, stored.values)
        assert each.grid == stored.grid


def test_maps_say_which_were_computed_again(live: LiveIndex, own: Client) -> None:
    grid = own.patch_map_grid(OTHER, live.good_rows, [3])
    kept = live.kept(OTHER, 3)
    assert grid.recomputed is not None
    assert grid.recomputed.tolist() == [row not in kept for row in live.good_rows]
    for row, recomputed in zip(live.good_rows, grid.recomputed.tolist(), strict=True):
        assert own.patch_map(OTHER, 3, row).recomputed is recomputed


def test_the_index_tells_of_its_model(own: Client, client: Client) -> None:
    assert own.index().live_model
    assert own.indexes()[0].live_model
    assert not client.index().live_model


def test_what_cannot_be_answered(own: Client, client: Client, tmp_path: Path) -> None:
    with pytest.raises(NotKeptError, match="--live"):
        client.analyze_image(jpeg(noise(1)))
    with pytest.raises(InvalidRequestError, match="picture"):
        own.analyze_image(b"no picture")
    with pytest.raises(UsageError, match="Cannot read the picture"):
        own.analyze_image(tmp_path / "none.jpg")
    with pytest.raises(UsageError, match="at most"):
        own.analyze_image(bytes((3 << 20) + 1))
    with pytest.raises(UsageError, match="Pooling"):
        own.analyze_image(jpeg(noise(1)), pooling="median")


def reply(**fields: object) -> query_pb2.AnalyzeImageResponse:
    maps = query_pb2.PatchMaps(layer=OTHER, channels=[3], height=1, width=2, values=bytes(4))
    given: dict[str, object] = {"generation": "g", "maps": [maps]}
    return query_pb2.AnalyzeImageResponse(**given | fields)  # type: ignore[arg-type]


def test_replies_that_make_no_sense() -> None:
    right = convert.analyzed_image(reply(), [(OTHER, 3)], False)
    assert right.maps[0].values.shape == (1, 2)
    with pytest.raises(ServerError, match="other maps"):
        convert.analyzed_image(reply(), [(OTHER, 4)], False)
    with pytest.raises(ServerError, match="1 maps where 2"):
        convert.analyzed_image(reply(), [(OTHER, 3), (OTHER, 4)], False)
    strongest = query_pb2.ScoredChannel(layer=OTHER, channel=3, score=1)
    assert convert.analyzed_image(reply(channels=[strongest]), [], True).maps
    with pytest.raises(ServerError, match="1 maps where 0"):
        convert.analyzed_image(reply(channels=[strongest]), [], False)
    for broken in ({"rows": [0]}, {"values": bytes(3)}, {"height": 0}):
        wrong = reply()
        for name, value in broken.items():
            if isinstance(value, list):
                getattr(wrong.maps[0], name).extend(value)
            else:
                setattr(wrong.maps[0], name, value)
        with pytest.raises(ServerError, match="inconsistent"):
            convert.analyzed_image(wrong, [(OTHER, 3)], False)


@pytest.mark.usefixtures("ask_live")
def test_the_command_prints_channels_and_neighbours(
    live: LiveIndex, own: Client, empty_folder: Path, capsys: Captured
) -> None:
    row = live.good_rows[1]
    line = ["analyze", str(live.files[row]), "-k", "3", "--layers", OTHER, "--neighbours", "2"]
    assert main(line) == 0
    out = capsys.readouterr().out
    found = own.analyze_image(live.files[row], layers=[OTHER], channels=3, neighbours=2)
    for channel in found.channels:
        assert f"{channel.score:.5g}" in out
    for image in found.neighbours[0].images:
        assert image.key in out
    assert f"The picture is that of row {row}." in out
    assert main([*line, "--json", "--percentiles", "--pooling", "max"]) == 0
    body = json.loads(capsys.readouterr().out)
    found = own.analyze_image(
        live.files[row],
        layers=[OTHER],
        channels=3,
        neighbours=2,
        pooling="max",
        percentiles=True,
    )
    assert [(each["layer"], each["channel"], each["percentile"]) for each in body["channels"]] == [
        (each.layer, each.channel, each.percentile) for each in found.channels
    ]
    assert [[image["row"] for image in near["images"]] for near in body["neighbours"]] == [
        [image.row for image in near.images] for near in found.neighbours
    ]
    assert body["same_as_row"] == row
    assert list(empty_folder.iterdir()) == []


@pytest.mark.usefixtures("ask_live")
@pytest.mark.parametrize("options", [["--percentiles"], ["--neighbours", "0"], ["-k", "0"]])
def test_the_command_draws_a_sheet(
    empty_folder: Path, capsys: Captured, options: list[str]
) -> None:
    (empty_folder / "own.jpg").write_bytes(jpeg(noise(40)))
    assert main(["analyze", "own.jpg", "--png", "sheet.png", *options]) == 0
    with Image.open(io.BytesIO((empty_folder / "sheet.png").read_bytes())) as sheet:
        assert min(sheet.size) > 200
    assert "Wrote sheet.png." in capsys.readouterr().err


@pytest.mark.usefixtures("ask_synthetic")
def test_the_command_without_a_live_model(empty_folder: Path, capsys: Captured) -> None:
    (empty_folder / "own.jpg").write_bytes(jpeg(noise(40)))
    assert main(["analyze", "own.jpg", "--png", "sheet.png"]) == 2
    assert "start it with --live" in capsys.readouterr().err
    assert not (empty_folder / "sheet.png").exists()
