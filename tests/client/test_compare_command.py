"""`vitscope compare` asks a real server over two indexes of the same pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from client.truth import WIDE, good_rows, scores
from PIL import Image
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.client import Client, sheets
from vitscope.client.cli import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return build(tmp_path_factory.mktemp("changed") / "changed", seed=3)


@pytest.fixture(scope="module")
def address(synthetic: Synthetic, changed: Synthetic, serve: Callable[..., ServerProcess]) -> str:
    return serve(synthetic.path, changed.path).address


@pytest.fixture
def line(synthetic: Synthetic, changed: Synthetic, address: str) -> list[str]:
    return (
        f"compare {changed.name} --index {synthetic.name} --layer {WIDE} --server {address}".split()
    )


def of_both(
    synthetic: Synthetic, changed: Synthetic, channel: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scores (V,) of the good rows in both indexes."""
    rows = good_rows(synthetic)
    a, b = (scores(index, WIDE, "mean")[rows, channel] for index in (synthetic, changed))
    return a.astype(np.float64), b.astype(np.float64)


@pytest.mark.parametrize("bottom", [False, True])
def test_channels(
    synthetic: Synthetic, changed: Synthetic, line: list[str], capsys: Captured, bottom: bool
) -> None:
    effects = {}
    for channel in range(11):
        a, b = of_both(synthetic, changed, channel)
        if a.max() > a.min():
            effects[channel] = (b.mean() - a.mean()) / a.std()
    ranked = sorted(effects, key=lambda channel: effects[channel] * (1 if bottom else -1))
    line += ["-k", "4", *["--bottom"] * bottom]
    assert main([*line, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [each["channel"] for each in answer["channels"]] == ranked[:4]
    assert answer["images"] == len(good_rows(synthetic))
    generations = answer["generation"], answer["other_generation"]
    assert generations == (synthetic.generation, changed.generation)
    assert main(line) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["rank", "channel", "effect", "difference"]
    assert [row.split()[1] for row in rows] == list(map(str, ranked[:4]))
    assert [row.split()[2] for row in rows] == [f"{effects[c]:.4g}" for c in ranked[:4]]


def test_images(
    synthetic: Synthetic, changed: Synthetic, line: list[str], capsys: Captured
) -> None:
    rows = good_rows(synthetic)
    a, b = of_both(synthetic, changed, 4)
    order = np.lexsort((np.array(rows), b - a))[:5]
    line += ["--channel", "4", "--bottom", "-k", "5"]
    assert main([*line, "--json"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    told = [(each["row"], each["score"], each["other_score"]) for each in images]
    assert told == [(rows[place], a[place], b[place]) for place in order]
    assert main(line) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [int(each.split()[4]) for each in lines] == [rows[place] for place in order]


def test_a_sheet_has_each_image_beside_its_copy(
    synthetic: Synthetic,
    changed: Synthetic,
    address: str,
    line: list[str],
    empty_folder: Path,
    capsys: Captured,
) -> None:
    assert main([*line, "--channel", "4", "-k", "5", "--png", "sheet.png"]) == 0
    assert capsys.readouterr().err == "Wrote sheet.png.\n"
    with Image.open(empty_folder / "sheet.png") as picture:
        assert picture.format == "PNG"
    with Client(address) as client:
        found = client.compare_images(synthetic.name, changed.name, WIDE, 4, k=5)
        section = sheets.changed_images_section(
            client, synthetic.name, changed.name, found, "greatest rise"
        )
    assert len(section.cells) == 10
    assert section.columns is not None
    assert section.columns % 2 == 0
    for image, mine, theirs in zip(
        found.images, section.cells[::2], section.cells[1::2], strict=True
    ):
        assert f"{image.score:.4g} · row {image.row}" == mine.detail
        assert theirs.detail.startswith(f"{image.other_score:.4g} (")
        assert theirs.heading == f"in {changed.name}"


def test_what_never_changed_has_no_number(
    synthetic: Synthetic, line: list[str], capsys: Captured
) -> None:
    still = [
        c
        for c in range(11)
        if np.ptp(scores(synthetic, WIDE, "mean")[good_rows(synthetic), c]) == 0
    ]
    assert still
    assert main([*line, "--by", "difference", "--json"]) == 0
    channels = json.loads(capsys.readouterr().out)["channels"]
    for each in channels:
        assert (each["effect"] is None) == (each["channel"] in still)


def test_a_sheet_is_of_images(line: list[str], empty_folder: Path, capsys: Captured) -> None:
    assert main([*line, "--png", "sheet.png"]) == 2
    assert "--channel" in capsys.readouterr().err
    assert not (empty_folder / "sheet.png").exists()
