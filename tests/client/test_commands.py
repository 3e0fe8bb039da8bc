"""The commands in-process, against a server with canned answers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitscope.client.cli import main
from vitscope.client.commands import _common
from vitscope.client.commands.patch_map import rendering
from vitscope.client.results import PatchMap

LAYER = "blocks.1.mlp"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch, server_address: str) -> None:
    monkeypatch.setenv("VITSCOPE_SERVER", server_address)


def test_top_images_json_is_one_object(capsys: Captured) -> None:
    line = ["top-images", "--layer", LAYER, "--channel", "3", "--pooling", "max", "-k", "2"]
    assert main([*line, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    key = "../0\x1b]0;owned\x07.jpg"
    assert answer["images"][0] == {"row": 0, "key": key, "label": "class 0", "score": 9.5}
    del answer["images"]
    assert answer == {"generation": "g7", "layer": LAYER, "channel": 3, "pooling": "max"}


def test_a_table_cannot_steer_the_terminal(capsys: Captured) -> None:
    assert main(["top-images", "--layer", LAYER, "--channel", "3"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.splitlines()[0].split() == ["rank", "score", "row", "label", "key"]
    assert len(out.splitlines()) == 6


@pytest.mark.parametrize(
    "line",
    [
        ["top-images", "--layer", LAYER, "--channel", "3", "-k", "3"],
        ["patch-map", "--layer", LAYER, "--channel", "3", "--row", "1"],
        ["similar-images", "--layer", LAYER, "--row", "2"],
        ["gallery", "--show", f"{LAYER}:3", "--show", f"{LAYER}:4", "-k", "2"],
    ],
)
def test_png(line: list[str], tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "sheet.png"
    assert main([*line, "--png", str(target)]) == 0
    assert f"wrote {target}" in capsys.readouterr().err
    with Image.open(target) as sheet:
        assert min(sheet.size) > 200


def test_a_picture_that_cannot_be_written_is_refused_before_asking(
    tmp_path: Path, capsys: Captured
) -> None:
    target = tmp_path / "none" / "sheet.png"
    line = ["top-images", "--layer", LAYER, "--channel", "3", "--png", str(target)]
    assert main([*line, "--server", "127.0.0.1:1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vitscope: the folder of ")


def test_patch_map_json(capsys: Captured) -> None:
    assert main(["patch-map", "--layer", LAYER, "--channel", "3", "--row", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "generation": "g7",
        "layer": LAYER,
        "channel": 3,
        "row": 1,
        "height": 2,
        "width": 3,
        "values": [[0.125, 1.125, 2.125], [3.125, 4.125, 5.125]],
    }


def test_patch_map_in_characters() -> None:
    values = np.array([[0, -1, np.nan], [1, 5, np.inf]], np.float16)
    lines = rendering(PatchMap("g", LAYER, 3, 1, values)).splitlines()
    assert "2 x 3 patches, from -1 to 5" in lines[0]
    assert lines[2:4] == ["│      │", "│··████│"]


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_a_map_without_positive_finite_values_is_blank(value: float) -> None:
    values = np.full((1, 2), value, np.float16)
    assert "│    │" in rendering(PatchMap("g", LAYER, 3, 1, values))


def test_similar_images(capsys: Captured) -> None:
    assert main(["similar-images", "--layer", LAYER, "--row", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [image["row"] for image in answer.pop("images")] == [0, 1, 3, 4]
    assert answer == {
        "generation": "g7",
        "layer": LAYER,
        "row": 2,
        "exact": False,
        "recall_at_10": 0.5,
    }
    assert main(["similar-images", "--layer", LAYER, "--row", "2"]) == 0
    assert "finds 50.0% of the true ten nearest" in capsys.readouterr().err


def test_layers(capsys: Captured) -> None:
    assert main(["layers"]) == 0
    out = capsys.readouterr().out
    assert "index canned, generation g7" in out
    assert f"    1  {LAYER}        16  2 x 3    cls     mean cls                 2" in out
    assert main(["layers", "--index", "canned", "--json"]) == 0
    [index] = json.loads(capsys.readouterr().out)["indexes"]
    assert index["layers"][0]["tokens"] == {"prefix": ["cls"], "height": 2, "width": 3}


def test_images_are_named_by_row_alone(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "thumbnails"
    line = ["images", "--row", "1", "--row", "5", "--out", str(out)]
    assert main([*line, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [image["file"] for image in answer["images"]] == [str(out / "row_000001.jpg"), None]
    assert answer["images"][1]["invalid_reason"] == "truncated"
    assert os.listdir(tmp_path) == ["thumbnails"]
    assert os.listdir(out) == ["row_000001.jpg"]
    assert main(["images", "--row", "5"]) == 0
    assert "unreadable: truncated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        (["top-images", "--layer", "x", "--channel", "0"], 2, "no layer 'x'"),
        (["top-images", "--layer", LAYER, "--channel", "0", "-k", "0"], 2, "k is 0; give 1 to 5"),
        (["patch-map", "--layer", LAYER, "--channel", "0", "--row", "4"], 2, "no map of 4"),
        (["layers", "--index", "none"], 2, "no index 'none'"),
        (["layers", "--server", "nowhere"], 2, "write HOST:PORT"),
        (["gallery", "--show", "x", "--png", "a.png"], 2, "not LAYER:CHANNEL"),
        (["gallery", "--show", "x:y", "--png", "a.png"], 2, "not LAYER:CHANNEL"),
    ],
)
def test_each_refusal_is_one_sentence(
    line: list[str], code: int, sentence: str, capsys: Captured
) -> None:
    assert main(line) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vitscope: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err


def test_json_has_no_number_that_json_does_not_know(capsys: Captured) -> None:
    _common.print_json({"values": [[float("nan"), float("inf"), 1.5]], "n": 3})
    assert json.loads(capsys.readouterr().out) == {"values": [[None, None, 1.5]], "n": 3}
