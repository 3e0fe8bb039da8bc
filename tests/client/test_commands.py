"""What the commands print about the synthetic index, asked from the real server."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client.truth import PLAIN, SHAPES, WHOLE, WIDE, bad_rows
from PIL import Image
from started import run_vitscope
from synthetic import Synthetic

from client import truth
from vitscope.client.cli import main
from vitscope.client.commands import _common
from vitscope.client.commands.patch_map import rendering
from vitscope.client.results import PatchMap

pytestmark = pytest.mark.usefixtures("ask_synthetic")

Captured = pytest.CaptureFixture[str]


def printed(line: list[str], capsys: Captured) -> str:
    assert main(line) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def json_of(line: list[str], capsys: Captured) -> Any:
    out = printed([*line, "--json"], capsys)
    assert out.count("\n") == 1
    return json.loads(out)


def ranking(index: Synthetic, pairs: list[tuple[int, float]]) -> list[dict[str, object]]:
    records = [index.records[row] for row, _ in pairs]
    return [
        {"row": row, "key": record.key, "label": record.label, "score": score}
        for (row, score), record in zip(pairs, records, strict=True)
    ]


@pytest.mark.parametrize(
    ("layer", "pooling"), [(name, pooling) for name in SHAPES for pooling in SHAPES[name].poolings]
)
def test_top_images_json(synthetic: Synthetic, layer: str, pooling: str, capsys: Captured) -> None:
    for channel in (0, 2, SHAPES[layer].channels - 1):
        expected = truth.best(synthetic, layer, channel, pooling)
        line = ["top-images", "--layer", layer, "--channel", str(channel), "--pooling", pooling]
        for k in (1, 10, 65):
            assert json_of([*line, "-k", str(k)], capsys) == {
                "generation": synthetic.generation,
                "layer": layer,
                "channel": channel,
                "pooling": pooling,
                "images": ranking(synthetic, expected[:k]),
            }


def test_the_table_of_top_images_is_20_by_the_mean(synthetic: Synthetic, capsys: Captured) -> None:
    line = ["top-images", "--layer", WIDE, "--channel", "4"]
    head, *rows = printed(line, capsys).splitlines()
    assert head.split() == ["rank", "score", "row", "label", "key"]
    expected = truth.best(synthetic, WIDE, 4, "mean")[:20]
    assert len(rows) == 20
    for rank, (text, (row, score)) in enumerate(zip(rows, expected, strict=True), 1):
        record = synthetic.records[row]
        words = [str(rank), f"{score:.5g}", str(row), record.label or "-", record.key]
        assert text.split() == " ".join(words).split()


@pytest.mark.parametrize("layer", SHAPES)
def test_patch_map_json(synthetic: Synthetic, layer: str, capsys: Captured) -> None:
    shape, maps = SHAPES[layer], truth.maps(synthetic, layer)
    for channel in (1, shape.channels - 1):
        for row in sorted(truth.kept_rows(synthetic, layer, channel))[::4]:
            line = ["patch-map", "--layer", layer, "--channel", str(channel), "--row", str(row)]
            assert json_of(line, capsys) == {
                "generation": synthetic.generation,
                "layer": layer,
                "channel": channel,
                "row": row,
                "height": shape.height,
                "width": shape.width,
                "grid": {
                    "input_height": 48,
                    "input_width": 80,
                    "cell_height": shape.cell[0],
                    "cell_width": shape.cell[1],
                    "top": shape.corner[0],
                    "left": shape.corner[1],
                },
                "values": maps[row, ..., channel].astype(float).tolist(),
            }


def test_patch_map_is_darkest_where_it_is_highest(synthetic: Synthetic, capsys: Captured) -> None:
    row = min(truth.kept_rows(synthetic, WIDE, 4))
    values = truth.maps(synthetic, WIDE)[row, ..., 4].astype(float)
    out = printed(["patch-map", "--layer", WIDE, "--channel", "4", "--row", str(row)], capsys)
    head, _, *lines, _ = out.splitlines()
    extent = f"3 x 5 patches, from {values.min():.4g} to {values.max():.4g}"
    assert head == f"{WIDE} channel 4 on row {row}: {extent}"
    shown = [line[1:-1:2] for line in lines]
    assert [len(line) for line in shown] == [5, 5, 5]
    top = np.unravel_index(values.argmax(), values.shape)
    assert shown[top[0]][top[1]] == "█"
    for y, x in np.argwhere(values <= 0):
        assert shown[y][x] == " "


def test_patch_map_in_characters() -> None:
    values = np.array([[0, -1, np.nan], [1, 5, np.inf]], np.float16)
    lines = rendering(PatchMap("g", WIDE, 3, 1, values, None)).splitlines()
    assert "2 x 3 patches, from -1 to 5" in lines[0]
    assert lines[2:4] == ["│      │", "│··████│"]


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_a_map_without_positive_finite_values_is_blank(value: float) -> None:
    values = np.full((1, 2), value, np.float16)
    assert "│    │" in rendering(PatchMap("g", WIDE, 3, 1, values, None))


def test_similar_images_json(synthetic: Synthetic, capsys: Captured) -> None:
    for layer in SHAPES:
        line = ["similar-images", "--layer", layer, "--row", "20", "-k", "12"]
        answer = json_of(line, capsys)
        images = answer.pop("images")
        assert answer == {
            "generation": synthetic.generation,
            "layer": layer,
            "row": 20,
            "exact": True,
            "recall_at_10": 1.0,
        }
        cosines = truth.cosines(synthetic, layer, 20)
        rows = [image["row"] for image in images]
        assert not set(rows) & {20, *bad_rows(synthetic)}
        found = [image.pop("score") for image in images]
        assert np.allclose(found, cosines[rows], atol=1e-5)
        others = np.delete(cosines, [20, *bad_rows(synthetic)])
        assert np.allclose(found, np.sort(others)[::-1][:12], atol=1e-5)
        named = ranking(synthetic, [(row, 0.0) for row in rows])
        assert images == [{key: one[key] for key in ("row", "key", "label")} for one in named]


def test_the_table_of_similar_images(synthetic: Synthetic, capsys: Captured) -> None:
    out = printed(["similar-images", "--layer", WIDE, "--row", "3", "-k", "4"], capsys)
    rows = [line.split()[:3] for line in out.splitlines()[1:]]
    assert rows == [[str(i), "1", str(row)] for i, row in enumerate([9, 40, 41, 66], 1)]


def test_layers(synthetic: Synthetic, capsys: Captured) -> None:
    lines = printed(["layers"], capsys).splitlines()
    assert lines[0] == f"index zoo, generation {synthetic.generation}"
    sha256 = synthetic.manifest.model.weights_sha256
    assert lines[1] == (
        f"model vit_synthetic.none, random weights {sha256[:12]}, input 48 x 80 px, float32"
    )
    assert lines[2] == "70 images, 5 of them unreadable"
    for depth, (line, (name, shape)) in enumerate(zip(lines[4:], SHAPES.items(), strict=True)):
        words = [str(depth), name, str(shape.channels), str(shape.height), "x", str(shape.width)]
        words += [f"{shape.cell[0]:g}", "x", f"{shape.cell[1]:g}"]
        words += [*(shape.prefix or "-"), *shape.poolings, str(shape.kept)]
        assert line.split() == words


def test_layers_json(synthetic: Synthetic, capsys: Captured) -> None:
    [index] = json_of(["layers"], capsys)["indexes"]
    assert json_of(["layers", "--index", "zoo"], capsys)["indexes"] == [index]
    assert (index["name"], index["generation"]) == ("zoo", synthetic.generation)
    assert (index["rows"], index["valid_rows"]) == (70, 65)
    assert index["layers"] == [
        {
            "name": name,
            "depth": depth,
            "channels": shape.channels,
            "tokens": {
                "prefix": list(shape.prefix),
                "height": shape.height,
                "width": shape.width,
                "cell_height": shape.cell[0],
                "cell_width": shape.cell[1],
                "top": shape.corner[0],
                "left": shape.corner[1],
            },
            "poolings": list(shape.poolings),
            "maps_per_channel": shape.kept,
        }
        for depth, (name, shape) in enumerate(SHAPES.items())
    ]


def test_images_are_written_as_they_are_stored_and_named_by_row_alone(
    synthetic: Synthetic, empty_folder: Path, capsys: Captured
) -> None:
    rows = [1, 68, 0, 1]
    line = ["images", "--out", "pictures", *(word for row in rows for word in ("--row", str(row)))]
    answer = json_of(line, capsys)
    assert answer["generation"] == synthetic.generation
    file = {row: os.path.join("pictures", f"row_{row:06d}.jpg") for row in (1, 68)}
    assert answer["images"] == [
        {
            "row": row,
            "key": synthetic.records[row].key,
            "label": synthetic.records[row].label,
            "valid": row not in bad_rows(synthetic),
            "invalid_reason": synthetic.records[row].reason,
            "width": synthetic.records[row].width,
            "height": synthetic.records[row].height,
            "view": (view := synthetic.records[row].view) and list(view),
            "file": file.get(row),
        }
        for row in rows
    ]
    # Keys hold slashes; nothing lies anywhere else, and nothing half written.
    written = [path for path in empty_folder.rglob("*") if path.is_file()]
    assert sorted(path.name for path in written) == ["row_000001.jpg", "row_000068.jpg"]
    for row, name in file.items():
        assert Path(name).read_bytes() == synthetic.thumbnails[row]
        with Image.open(io.BytesIO(Path(name).read_bytes())) as picture:
            assert picture.size == ((11, 16) if row % 2 == 0 else (16, 9))


def test_the_table_of_images_without_a_folder(
    synthetic: Synthetic, empty_folder: Path, capsys: Captured
) -> None:
    out = printed(["images", "--row", "69", "--row", "4"], capsys)
    _, bad, good = out.splitlines()
    assert "unreadable: cannot identify image №69" in bad
    assert good.split() == ["4", "fox", "зоопарк/野", "004.jpg", "ok", "-"]
    assert os.listdir(empty_folder) == []


def test_an_unreadable_image_has_no_file(empty_folder: Path, capsys: Captured) -> None:
    [image] = json_of(["images", "--row", "17", "--out", "."], capsys)["images"]
    assert (image["valid"], image["file"]) == (False, None)
    assert os.listdir(empty_folder) == []


@pytest.mark.parametrize(
    "line",
    [
        ["top-images", "--layer", WIDE, "--channel", "4"],
        ["similar-images", "--layer", WIDE, "--row", "1"],
        ["images", "--row", "1", "--row", "2", "--row", "3"],
    ],
)
def test_names_cannot_steer_the_terminal(hostile: str, line: list[str], capsys: Captured) -> None:
    out = printed([*line, "--server", hostile], capsys)
    assert "\x1b" not in out
    assert "\x07" not in out
    rows = 2 if line[0] == "similar-images" else 3
    assert len(out.splitlines()) == 1 + rows
    assert "owned" in json.dumps(json_of([*line, "--server", hostile], capsys))


def test_names_cannot_steer_where_files_go(
    hostile: str, empty_folder: Path, capsys: Captured
) -> None:
    printed(["images", "--row", "1", "--out", "pictures", "--server", hostile], capsys)
    files = [path for path in empty_folder.parent.rglob("*") if path.is_file()]
    assert files == [empty_folder / "pictures" / "row_000001.jpg"]


@pytest.mark.parametrize("which", ["synthetic", "pond"])
def test_the_index_that_is_named_answers(
    two_indexes: str, which: str, request: pytest.FixtureRequest, capsys: Captured
) -> None:
    index: Synthetic = request.getfixturevalue(which)
    where = ["--server", two_indexes, "--index", index.name]
    assert json_of(["layers", *where], capsys)["indexes"][0]["generation"] == index.generation
    top = json_of(["top-images", "--layer", WIDE, "--channel", "4", "-k", "9", *where], capsys)
    assert top["generation"] == index.generation
    assert top["images"] == ranking(index, truth.best(index, WIDE, 4, "mean")[:9])
    ask = ["--layer", WHOLE, "--channel", "2", "--row", "7"]
    one = json_of(["patch-map", *ask, *where], capsys)
    assert one["values"] == truth.maps(index, WHOLE)[7, ..., 2].tolist()
    near = json_of(["similar-images", "--layer", WIDE, "--row", "5", "-k", "3", *where], capsys)
    cosines = truth.cosines(index, WIDE, 5)
    rows = [image["row"] for image in near["images"]]
    assert np.allclose([image["score"] for image in near["images"]], cosines[rows], atol=1e-5)
    [image] = json_of(["images", "--row", "33", *where], capsys)["images"]
    assert image["key"] == index.records[33].key


def test_layers_of_all_indexes(two_indexes: str, capsys: Captured) -> None:
    listed = json_of(["layers", "--server", two_indexes], capsys)["indexes"]
    assert {index["name"]: len(index["layers"]) for index in listed} == {"zoo": 3, "пруд": 3}
    out = printed(["layers", "--server", two_indexes], capsys)
    assert "index zoo, " in out
    assert "\n\nindex пруд, " in out


def test_an_option_wins_over_the_environment(
    two_indexes: str, silent_address: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert len(json_of(["layers"], capsys)["indexes"]) == 1
    assert len(json_of(["layers", "--server", two_indexes], capsys)["indexes"]) == 2
    monkeypatch.setenv("VITSCOPE_SERVER", two_indexes)
    assert len(json_of(["layers"], capsys)["indexes"]) == 2
    monkeypatch.setenv("VITSCOPE_SERVER", silent_address)
    assert main(["layers"]) == 5


def test_the_console_script_answers_alike(synthetic: Synthetic, capsys: Captured) -> None:
    line = ["top-images", "--layer", PLAIN, "--channel", "7", "-k", "5", "--json"]
    done = run_vitscope(*line)
    assert (done.returncode, done.stderr) == (0, "")
    assert main(line) == 0
    assert capsys.readouterr().out == done.stdout


def test_json_has_no_number_that_json_does_not_know(capsys: Captured) -> None:
    _common.print_json({"values": [[float("nan"), float("inf"), 1.5]], "n": 3})
    assert json.loads(capsys.readouterr().out) == {"values": [[None, None, 1.5]], "n": 3}
