"""The pictures that commands draw of the real server's answers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from client.truth import SHAPES, WHOLE, WIDE
from numpy.testing import assert_array_equal
from PIL import Image
from synthetic import Synthetic

from client import truth
from vitscope.client import Client, sheets
from vitscope.client.cli import main
from vitscope.client.pictures import Section

pytestmark = pytest.mark.usefixtures("ask_synthetic")

Captured = pytest.CaptureFixture[str]
Pixels = npt.NDArray[np.int16]


def colour(index: Synthetic, row: int) -> Pixels:
    """The one colour of a thumbnail."""
    with Image.open(io.BytesIO(index.thumbnails[row])) as picture:
        return np.array(picture.getpixel((5, 5)), np.int16)


def drawn(line: list[str], target: str, capsys: Captured) -> Pixels:
    """What a command drew, (H, W, 3)."""
    assert main([*line, "--png", target]) == 0
    assert capsys.readouterr().err == f"Wrote {target}.\n"
    with Image.open(target) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"), np.int16)


def box(sheet: Pixels, paint: Pixels) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what has a colour."""
    here = np.argwhere((np.abs(sheet - paint) <= 4).all(-1))
    assert len(here) > 1000
    (top, left), (bottom, right) = here.min(0).tolist(), here.max(0).tolist()
    return top, left, bottom, right


def check_cells(index: Synthetic, section: Section, rows: list[int]) -> None:
    """The section shows these images."""
    assert len(section.cells) == len(rows)
    for cell, row in zip(section.cells, rows, strict=True):
        assert f"row {row}" in cell.detail
        assert cell.picture is not None
        width, height = (16, 9) if row % 2 else (11, 16)
        assert cell.picture.shape == (height, width, 3)
        assert (np.abs(cell.picture.astype(int) - colour(index, row)) <= 1).all()


def test_top_patches_are_framed_in_their_images(client: Client, synthetic: Synthetic) -> None:
    top = client.top_patches(WIDE, 4, k=4)
    section = sheets.top_patches_section(client, "", top)
    check_cells(synthetic, section, [patch.row for patch in top.patches])
    dense = truth.maps(synthetic, WIDE)
    for cell, patch in zip(section.cells, top.patches, strict=True):
        assert cell.mark == (patch.y, patch.x)
        assert cell.grid == top.grid
        assert cell.patch_map is not None
        assert_array_equal(cell.patch_map, dense[patch.row, ..., 4])
        assert cell.patch_map[cell.mark] == patch.score


@pytest.mark.parametrize(
    ("layer", "pooling"), [(name, pooling) for name in SHAPES for pooling in SHAPES[name].poolings]
)
def test_top_images_stand_beside_their_own_maps(
    client: Client, synthetic: Synthetic, layer: str, pooling: str
) -> None:
    channel, k = SHAPES[layer].channels - 1, 12
    expected = truth.best(synthetic, layer, channel, pooling)[:k]
    top = client.top_images(layer, channel, pooling=pooling, k=k, maps=True)
    section = sheets.top_images_section(client, "", top)
    check_cells(synthetic, section, [row for row, _ in expected])
    assert section.title == f"{layer} · channel {channel} · top {k} by {pooling}"
    assert section.note == f"zoo · vit_synthetic.none · generation {synthetic.generation}"
    dense = truth.maps(synthetic, layer)
    stored = truth.kept_rows(synthetic, layer, channel)
    for rank, (cell, (row, score)) in enumerate(zip(section.cells, expected, strict=True), 1):
        record = synthetic.records[row]
        assert cell.heading == f"{rank}  {record.label or record.key}"
        assert cell.detail == f"{pooling} {score:.4g} · row {row}"
        if row not in stored:
            assert cell.patch_map is None
        else:
            assert cell.patch_map is not None
            assert_array_equal(cell.patch_map, dense[row, ..., channel])


def test_similar_images_begin_with_the_one_asked_about(
    client: Client, synthetic: Synthetic
) -> None:
    section = sheets.similar_images_section(client, "", client.similar_images(WIDE, 3, k=4))
    check_cells(synthetic, section, [3, 9, 40, 41, 66])
    assert not section.maps
    assert section.note.endswith("· exact")


def test_a_patch_map_is_hottest_where_it_is_highest(
    synthetic: Synthetic, empty_folder: Path, capsys: Captured
) -> None:
    dense = truth.maps(synthetic, WIDE)[..., 4].astype(float)
    for row in sorted(truth.kept_rows(synthetic, WIDE, 4))[:4]:
        line = ["patch-map", "--layer", WIDE, "--channel", "4", "--row", str(row)]
        sheet = drawn(line, f"{row}.png", capsys)
        top, left, bottom, right = box(sheet, colour(synthetic, row))
        # A small gap of paper, then the overlay, of the same size.
        across = (sheet[(top + bottom) // 2, right + 1 :] < 250).any(-1)
        start = right + 1 + int(across.argmax())
        overlay = sheet[top : bottom + 1, start : start + right + 1 - left]
        light = overlay @ np.array([0.3, 0.6, 0.1])
        height, width = light.shape
        y, x = np.unravel_index(light.argmax(), light.shape)
        highest = np.unravel_index(dense[row].argmax(), (3, 5))
        assert (int((y + 0.5) / height * 3), int((x + 0.5) / width * 5)) == highest


def test_top_images_are_drawn_in_reading_order(
    synthetic: Synthetic, empty_folder: Path, capsys: Captured
) -> None:
    best = [[row for row, _ in truth.best(synthetic, WIDE, c, "mean")[:3]] for c in range(11)]
    # Rows far from each other have colours that can be told apart.
    channel, rows = next((c, r) for c, r in enumerate(best) if np.diff(sorted(r)).min() > 5)
    line = ["top-images", "--layer", WIDE, "--channel", str(channel), "-k"]
    few, many = (drawn([*line, k], f"{k}.png", capsys) for k in ("3", "30"))
    assert many.shape[0] > few.shape[0]
    boxes = [box(few, colour(synthetic, row)) for row in rows]
    places = [((top + bottom) // 200, left) for top, left, bottom, _ in boxes]
    assert places == sorted(places)


def test_a_gallery_stacks_the_channels_it_is_given(
    synthetic: Synthetic, empty_folder: Path, capsys: Captured
) -> None:
    shown = [(WIDE, 7), (WHOLE, 2)]
    line = ["gallery", "--pooling", "max", "-k", "1"]
    line += [word for layer, channel in shown for word in ("--show", f"{layer}:{channel}")]
    sheet = drawn(line, "gallery.png", capsys)
    rows = [truth.best(synthetic, layer, channel, "max")[0][0] for layer, channel in shown]
    (top, left, bottom, _), (below, beside, _, _) = (box(sheet, colour(synthetic, r)) for r in rows)
    assert bottom < below
    assert abs(left - beside) < 200
    assert top > 100


@pytest.mark.parametrize(
    "line",
    [
        ["top-images", "--layer", WIDE, "--channel", "4"],
        ["patch-map", "--layer", WHOLE, "--channel", "1", "--row", "33"],
        ["similar-images", "--layer", WIDE, "--row", "5"],
        ["gallery", "--show", f"{WIDE}:4"],
    ],
)
def test_the_index_that_is_named_is_drawn_also_without_thumbnails(
    pond: Synthetic, two_indexes: str, line: list[str], empty_folder: Path, capsys: Captured
) -> None:
    where = ["--server", two_indexes, "--index", pond.name]
    sheet = drawn([*line, *where], "sheet.png", capsys)
    assert min(sheet.shape[:2]) > 200


def test_an_answer_and_its_picture_come_together(
    synthetic: Synthetic, empty_folder: Path, capsys: Captured
) -> None:
    line = ["top-images", "--layer", WIDE, "--channel", "4", "-k", "2", "--json"]
    assert main(line) == 0
    alone = capsys.readouterr().out
    assert main([*line, "--png", "sheet.png"]) == 0
    assert capsys.readouterr().out == alone
    assert [path.name for path in empty_folder.iterdir()] == ["sheet.png"]
