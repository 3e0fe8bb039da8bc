"""Properties of what is drawn, over flat and synthetic pictures."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from vitscope.client import ServerError, UsageError, convert_maps
from vitscope.client.entries import PatchGrid
from vitscope.client.files import folder_target, png_target
from vitscope.client.pictures import (
    Cell,
    Section,
    contact_sheet,
    decode,
    gallery_sheet,
    heat,
    overlay,
    save_png,
)
from vitscope.v1 import query_pb2

LUMA = np.array([0.299, 0.587, 0.114])


def flat(height: int = 120, width: int = 160, value: int = 140) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def warmth(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How far red exceeds blue, (H, W)."""
    return pixels[..., 0].astype(np.int64) - pixels[..., 2]


def heat_shown(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How far an overlay on `flat()` has gone from what a cold one looks like, (H, W)."""
    cold = overlay(flat(), np.zeros((1, 1)), top=5.0)[0, 0].astype(np.int64)
    change: NDArray[np.int64] = np.abs(pixels - cold).sum(axis=-1)
    return change


def one_hot(height: int, width: int, y: int, x: int) -> NDArray[np.float16]:
    values = np.zeros((height, width), np.float16)
    values[y, x] = 5
    return values


def cell(
    patch_map: NDArray[np.float16] | None = None, picture: NDArray[np.uint8] | None = None
) -> Cell:
    return Cell(picture, patch_map, "1  fox", "mean 4.2 · row 7")


def test_heat_grows_lighter_with_activation() -> None:
    light = heat(np.linspace(0, 1, 50)) @ LUMA
    assert (np.diff(light) > 0).all()
    assert np.diff(light).max() < 2.5 * np.diff(light).min()


@pytest.mark.parametrize("value", [0.0, -3.0, np.nan, -np.inf])
def test_a_cold_map_has_no_hot_colour(value: float) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 60, 3), np.uint8)
    drawn = overlay(picture, np.full((4, 6), value, np.float16), top=5.0)
    assert drawn.shape == picture.shape
    assert drawn.dtype == np.uint8
    assert (np.abs(warmth(drawn)) <= np.abs(warmth(picture))).all()
    assert drawn.mean() < picture.mean()


@pytest.mark.parametrize("top", [0.0, -1.0, float("nan")])
def test_without_a_hottest_value_all_is_cold(top: float) -> None:
    drawn = overlay(flat(), one_hot(3, 3, 1, 1), top=top)
    assert_array_equal(drawn, overlay(flat(), np.zeros((3, 3)), top=5.0))


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_the_hottest_pixel_lies_in_the_hottest_patch(
    height: int, width: int, data: st.DataObject
) -> None:
    y = data.draw(st.integers(0, height - 1))
    x = data.draw(st.integers(0, width - 1))
    drawn = overlay(flat(), one_hot(height, width, y, x), top=5.0)
    at = np.unravel_index(np.argmax(heat_shown(drawn)), drawn.shape[:2])
    assert int((at[0] + 0.5) * height / 120) == y
    assert int((at[1] + 0.5) * width / 160) == x


EVEN = PatchGrid(224, 224, 16.0, 16.0, 0.0, 0.0)
WIDE = PatchGrid(160, 256, 16.0, 16.0, 0.0, 0.0)
INSET = PatchGrid(224, 224, 8.0, 8.0, 4.0, 4.0)
"""As PiT's first stage: 27 x 27 patches, and a rim of 4 pixels that is in none."""
SHIFTED = PatchGrid(224, 224, 16.0, 16.0, -7.25, -7.25)
"""As TinyViT's: the first patches begin outside of the input."""
UNEVEN = PatchGrid(192, 320, 24.0, 40.0, -6.0, 12.25)
GRIDS = {
    "even": (EVEN, (14, 14)),
    "wide": (WIDE, (10, 16)),
    "inset": (INSET, (27, 27)),
    "shifted": (SHIFTED, (14, 14)),
    "uneven": (UNEVEN, (8, 7)),
}


def covered(grid: PatchGrid, y: int, x: int, picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Top, left, bottom and right of a patch in pixels of a picture of the input."""
    down = picture.shape[0] / grid.input_height
    across = picture.shape[1] / grid.input_width
    top, left = grid.top + y * grid.cell_height, grid.left + x * grid.cell_width
    bottom, right = top + grid.cell_height, left + grid.cell_width
    return np.array([top * down, left * across, bottom * down, right * across])


@pytest.mark.parametrize("scale", [1.0, 0.5, 1.43])
@pytest.mark.parametrize("name", GRIDS)
def test_the_heat_of_a_patch_lies_around_its_middle(name: str, scale: float) -> None:
    """In pictures that are the model's input, or are larger or smaller."""
    grid, (h, w) = GRIDS[name]
    picture = flat(round(grid.input_height * scale), round(grid.input_width * scale))
    ys, xs = np.indices(picture.shape[:2]) + 0.5
    for y in range(1, h - 1, 3):
        for x in range(1, w - 1, 4):
            shown = heat_shown(overlay(picture, one_hot(h, w, y, x), top=5.0, grid=grid))
            top, left, bottom, right = covered(grid, y, x, picture)
            assert (ys * shown).sum() / shown.sum() == pytest.approx((top + bottom) / 2, abs=0.75)
            assert (xs * shown).sum() / shown.sum() == pytest.approx((left + right) / 2, abs=0.75)


@pytest.mark.parametrize("name", GRIDS)
def test_patches_at_the_edges_are_hottest_within(name: str) -> None:
    grid, (h, w) = GRIDS[name]
    picture = flat(grid.input_height, grid.input_width)
    for y, x in [(0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1), (0, w // 2)]:
        shown = heat_shown(overlay(picture, one_hot(h, w, y, x), top=5.0, grid=grid))
        top, left, bottom, right = covered(grid, y, x, picture)
        hottest = np.argwhere(shown == shown.max()) + 0.5
        assert ((hottest >= [top, left]) & (hottest <= [bottom, right])).all()


@pytest.mark.parametrize("name", GRIDS)
def test_what_lies_outside_of_all_patches_is_cold(name: str) -> None:
    grid, (h, w) = GRIDS[name]
    picture = flat(grid.input_height, grid.input_width)
    shown = heat_shown(overlay(picture, np.full((h, w), 5.0), top=5.0, grid=grid))
    first, last = covered(grid, 0, 0, picture), covered(grid, h - 1, w - 1, picture)
    ys, xs = np.indices(picture.shape[:2]) + 0.5
    inside = (ys > first[0]) & (xs > first[1]) & (ys < last[2]) & (xs < last[3])
    assert_array_equal(shown > 0, inside)
    assert len(np.unique(shown)) <= 2


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 90), st.integers(1, 90), st.data())
def test_an_even_grid_is_stretched_over_the_picture(
    h: int, w: int, height: int, width: int, data: st.DataObject
) -> None:
    """To the byte as Pillow does it, whatever the size of the input."""
    chance = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    patches = chance.normal(1, 2, (h, w)).astype(np.float16)
    picture = chance.integers(0, 256, (height, width, 3), np.uint8)
    down, across = data.draw(st.integers(1, 32)), data.draw(st.floats(0.5, 32))
    side = (h * down, round(w * across) or 1)
    grid = PatchGrid(*side, side[0] / h, side[1] / w, 0.0, 0.0)
    expected = stretched(picture, patches, 4.0)
    assert_array_equal(overlay(picture, patches, top=4.0), expected)
    assert_array_equal(overlay(picture, patches, top=4.0, grid=grid), expected)


def stretched(
    picture: NDArray[np.uint8], patches: NDArray[np.float16], top: float
) -> NDArray[np.uint8]:
    """The overlay of maps that cover the picture evenly, as it was drawn from the beginning."""
    share = np.clip(patches.astype(np.float32) / np.float32(top), 0.0, 1.0)
    size = picture.shape[1], picture.shape[0]
    resized = Image.fromarray(share).resize(size, Image.Resampling.BILINEAR)
    spread = np.asarray(resized, np.float32)[..., None]
    cold = 0.55 * (picture.astype(np.float32) @ LUMA.astype(np.float32))[..., None]
    mixed = cold + 0.85 * spread**0.9 * (heat(spread[..., 0]) - cold)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


@settings(deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 60),
    st.floats(1 / 4000, 60),
    st.floats(1e-6, 1 - 1e-6),
    st.integers(1, 50),
)
def test_every_grid_that_a_reply_may_have_is_drawn(
    side: int, patches: int, ratio: float, share: float, pixels: int
) -> None:
    """From one that ends where the input begins to one that begins where it ends."""
    cell = ratio * side
    start = -cell * patches + share * (side + cell * patches)
    message = query_pb2.PatchGrid(
        input_height=224, input_width=side, cell_height=56, cell_width=cell, left=start
    )
    grid = convert_maps.patch_grid(message, 4, patches)
    hot = np.full((4, patches), 5.0)
    shown = heat_shown(overlay(flat(8, pixels), hot, top=5.0, grid=grid))
    at = (np.arange(pixels) + 0.5) * side / pixels
    edges = at - start, start + cell * patches - at
    sure = np.minimum(*np.abs(edges)) > 1e-3 * max(cell, 1)
    inside = np.minimum(*edges) > 0
    assert ((shown > 0).all(0) == inside)[sure].all()


def test_a_sheet_draws_maps_where_their_patches_lie() -> None:
    """Only the right half of the input has patches."""
    grid = PatchGrid(160, 160, 40.0, 40.0, 0.0, 80.0)
    hot = Cell(flat(160, 160), np.full((4, 2), 5, np.float16), "h", "d", grid)
    sheet = np.asarray(contact_sheet("t", [hot]))[130:]
    columns = np.flatnonzero((warmth(sheet) > 60).any(0))
    assert columns.max() - columns.min() == 79
    assert columns.min() == 36 + 160 + 4 + 80


def test_more_activation_shows_more_heat() -> None:
    ramp = np.linspace(0, 5, 16)[None]
    line = heat_shown(overlay(flat(8, 160), ramp, top=5.0))[4, ::10]
    assert (np.diff(line) > 0).all()


def test_values_above_top_are_as_hot_as_top() -> None:
    patches = one_hot(3, 3, 1, 1)
    assert_array_equal(
        overlay(flat(), np.where(patches > 0, np.inf, 0), top=2.0),
        overlay(flat(), np.where(patches > 0, 2.0, 0), top=2.0),
    )


def test_a_sheet_grows_with_its_cells() -> None:
    cells = [cell(one_hot(4, 4, 1, 1), flat(160, 160))] * 7
    two, six, seven = (contact_sheet("t", cells[:n], columns=3) for n in (2, 6, 7))
    assert two.width < six.width == seven.width
    assert two.height < six.height < seven.height


def test_small_pictures_are_enlarged_and_large_ones_shrunk() -> None:
    heights = [
        contact_sheet("t", [cell(None, flat(side, side))]).height for side in (96, 192, 320, 900)
    ]
    assert heights[0] == heights[1] < heights[2] == heights[3]


def test_many_pictures_are_shown_smaller() -> None:
    photo = cell(one_hot(4, 4, 1, 1), flat(320, 320))
    few, many = (contact_sheet("t", [photo] * n, columns=2) for n in (2, 24))
    assert 160 * 4 < many.width < few.width
    # A gallery counts the cells of all its sections.
    apart = gallery_sheet([Section("t", [photo] * 12, columns=2)] * 2)
    assert apart.width == many.width


def test_24_photographs_make_a_file_of_moderate_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (24, 60, 60, 3), np.uint8)
    photos = [np.asarray(Image.fromarray(one).resize((224, 224))) for one in coarse]
    hot = rng.random((24, 14, 14)).astype(np.float16)
    cells = [cell(patches, photo) for patches, photo in zip(hot, photos, strict=True)]
    save_png(contact_sheet("t", cells), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size < 2_000_000


def test_saving_moves_colours_by_little_and_paper_not_at_all(tmp_path: Path) -> None:
    shades = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2))
    save_png(shades, tmp_path / "shades.png")
    with Image.open(tmp_path / "shades.png") as saved:
        after = np.asarray(saved)[0, :, 0].astype(int)
    assert np.abs(after - np.arange(256)).max() <= 2
    assert (after[0], after[255]) == (0, 255)


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_a_sheet_without_heat_has_no_scale(value: float) -> None:
    cold = np.asarray(contact_sheet("t", [cell(np.full((4, 4), value, np.float16), flat())]))
    hot = np.asarray(contact_sheet("t", [cell(one_hot(4, 4, 1, 1), flat())]))
    header = slice(70, 110)
    assert np.abs(warmth(cold[header])).max() < 10
    assert warmth(hot[header]).max() > 60


def test_the_scale_is_shared_by_the_cells() -> None:
    weak = cell((one_hot(4, 4, 1, 1) / 5).astype(np.float16), flat())
    strong = cell(one_hot(4, 4, 1, 1), flat())
    alone = np.asarray(contact_sheet("t", [weak], columns=2))
    beside = np.asarray(contact_sheet("t", [weak, strong], columns=2))
    lower = slice(130, None)
    hottest = warmth(alone[lower]).max()
    assert warmth(beside[lower, : beside.shape[1] // 2]).max() < hottest
    assert warmth(beside[lower, beside.shape[1] // 2 :]).max() == hottest


def test_cells_without_map_or_thumbnail_are_drawn() -> None:
    plain = cell(None, flat())
    unseen = cell(one_hot(4, 4, 0, 0), None)
    neither = cell(None, None)
    sheet = np.asarray(contact_sheet("t", [plain, unseen, neither], columns=1))
    hot = np.argwhere(warmth(sheet[130:]) > 60)
    assert hot.size
    assert hot[:, 1].min() > 36 + 160  # only over the grey beside the missing thumbnail


def test_a_missing_map_is_said_in_the_caption() -> None:
    kept = np.asarray(contact_sheet("t", [cell(np.zeros((2, 2), np.float16), flat())]))
    lost = np.asarray(contact_sheet("t", [cell(None, flat())]))
    caption = slice(kept.shape[0] - 36 - 22, kept.shape[0] - 36)
    assert (lost[caption] < 200).sum() > (kept[caption] < 200).sum()


@pytest.mark.parametrize("maps", [True, False])
def test_a_sheet_of_nothing_is_only_a_title(maps: bool) -> None:
    assert contact_sheet("t", [], maps=maps).height < 200


def test_long_and_odd_captions_stay_on_the_sheet() -> None:
    long = Cell(flat(), None, "狐\n" * 300, "x" * 900)
    plain = contact_sheet("t", [cell(None, flat())])
    drawn = contact_sheet("t" * 500, [long], note="n" * 500)
    assert drawn.width == plain.width
    for sheet in (drawn, contact_sheet("t", [cell(one_hot(4, 4, 1, 1) / np.float16(7), flat())])):
        margin = np.asarray(sheet)[:, sheet.width - 30 :]
        assert (margin == 255).all()


@pytest.mark.parametrize("count", [8, 13])
def test_the_rows_of_a_sheet_are_filled_evenly(count: int) -> None:
    cells = [cell(one_hot(4, 4, 1, 1), flat(224, 224))] * count
    wide = contact_sheet("t", cells).width
    columns = next(n for n in range(1, count + 1) if contact_sheet("t", cells, n).width == wide)
    # With one column less it would take another row.
    assert -(-count // (columns - 1)) > -(-count // columns)
    assert wide <= 2000


def test_a_patch_is_framed_in_the_picture_and_not_in_the_overlay() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    grid = PatchGrid(100, 100, 50.0, 50.0, 0.0, 0.0)
    patches = np.zeros((2, 2), np.float16)
    plain = Cell(grey, patches, "h", "d", grid)
    sheets = [
        np.asarray(contact_sheet("t", [each]), np.int16)
        for each in (plain, replace(plain, mark=(1, 0)))
    ]
    changed = np.argwhere((sheets[0] != sheets[1]).any(-1))
    # The lower left quarter of the left one of two pictures of 200 pixels, and the rim around it.
    left = np.argwhere((sheets[0] == 128).all(-1)).min(0)
    rows, columns = (changed - left).T
    assert 96 <= rows.min() < 104
    assert rows.max() <= 204
    assert columns.min() >= -4
    assert 96 <= columns.max() <= 104
    assert len(changed) > 100


def test_a_gallery_stacks_its_sections() -> None:
    narrow = Section("a", [cell(None, flat())], note="n")
    wide = Section("b", [cell(None, flat())] * 4, columns=4)
    sheets = [contact_sheet("a", narrow.cells, note="n"), contact_sheet("b", wide.cells, 4)]
    gallery = gallery_sheet([narrow, wide])
    assert gallery.height == sum(sheet.height for sheet in sheets)
    assert gallery.width == max(sheet.width for sheet in sheets)


def test_a_thumbnail_decodes_to_rgb() -> None:
    buffer = io.BytesIO()
    Image.new("L", (30, 20), 90).save(buffer, "JPEG")
    picture = decode(buffer.getvalue())
    assert picture.shape == (20, 30, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "png"])
def test_a_thumbnail_that_is_no_jpeg_is_the_servers_fault(damage: str) -> None:
    jpeg, png = io.BytesIO(), io.BytesIO()
    picture = Image.effect_noise((64, 64), 90)
    picture.save(jpeg, "JPEG")
    picture.save(png, "PNG")
    data = {
        "empty": b"",
        "text": b"<html>",
        "truncated": jpeg.getvalue()[:-400],
        "png": png.getvalue(),
    }[damage]
    with pytest.raises(ServerError, match="does not decode"):
        decode(data)


def test_a_sheet_is_saved_whole_and_over_what_was_there(tmp_path: Path) -> None:
    target = png_target(str(tmp_path / "sheet.png"))
    target.write_bytes(b"old")
    save_png(contact_sheet("t", [cell(None, flat())]), target)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open(target) as picture:
        assert picture.format == "PNG"


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for name, sentence in [
        (tmp_path / "sheet.jpg", "must end in .png"),
        (tmp_path / "none" / "sheet.png", "does not exist"),
        (tmp_path / "folder.png", "is a folder"),
        (tmp_path / f"{'x' * 300}.png", "File name too long"),
    ]:
        with pytest.raises(UsageError, match=sentence):
            png_target(str(name))
    with pytest.raises(UsageError, match="is not a folder"):
        folder_target(str(tmp_path / "file"))
    with pytest.raises(UsageError, match="Cannot make"):
        folder_target(str(tmp_path / "none" / "deeper"))
