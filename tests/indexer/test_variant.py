"""Copies without background, object or detail, and their rows beside the original's."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from started import VITSCOPE

from vitscope.client.cli import main
from vitscope.indexer.errors import OutputError, SourceError
from vitscope.indexer.sources import open_source
from vitscope.indexer.sources.boxlist import RowBoxes, make_box
from vitscope.indexer.sources.rows import RowListBuilder, Source
from vitscope.indexer.variant import FILLS, LIST, Change, Made, Variant

Pixels = npt.NDArray[np.uint8]
BOXES: list[list[float]] = [[3, 2, 9, 7.4], [-5, 6, 4, 30]]


def picture(seed: int, size: tuple[int, int] = (16, 12)) -> Pixels:
    shape = (size[1], size[0], 3)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A list of three pictures: with boxes, without, and one that is none."""
    (tmp_path / "far").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "far" / "boxed.png")
    Image.fromarray(picture(1)).save(tmp_path / "plain.bmp")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "boxes"))
        rows.writerow((tmp_path / "far" / "boxed.png", "fox", json.dumps(BOXES)))
        rows.writerow(("plain.bmp", "", ""))
        rows.writerow(("broken.jpg", "owl", json.dumps(BOXES)))
        rows.writerow(("missing.jpg", "owl", ""))
    return tmp_path / "list.csv"


def made(listed: Path, out: Path, **change: Any) -> tuple[Made, Source]:
    """A variant of the list, and it as a source."""
    found = Variant(open_source(listed), out, Change(**change)).make()
    return found, open_source(out / LIST)


def pixels_of(source: Source, row: int) -> Pixels:
    with Image.open(io.BytesIO(source.read(row))) as opened:
        assert opened.format == "PNG"
        return np.array(opened)


def inside_of(size: tuple[int, int], boxes: list[list[float]]) -> npt.NDArray[np.bool_]:
    """Which pixels lie in boxes: those whose middle does, one by one."""
    found = np.zeros((size[1], size[0]), np.bool_)
    for y in range(size[1]):
        for x in range(size[0]):
            found[y, x] = any(x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1 for x0, y0, x1, y1 in boxes)
    return found


@pytest.mark.parametrize("fill", [*sorted(FILLS), "255,0,7"])
@pytest.mark.parametrize("part", ["background", "foreground"])
def test_what_is_covered_and_what_stays(listed: Path, tmp_path: Path, part: str, fill: str) -> None:
    found, copy = made(listed, tmp_path / "copy", mask=part, fill=fill)
    assert found == Made(pictures=4, unmasked=1, invalid=2)
    whole, seen = picture(0), pixels_of(copy, 0)
    inside = inside_of((16, 12), BOXES)
    stays = inside if part == "background" else ~inside
    numbers = {**FILLS, "255,0,7": (255, 0, 7)}
    colour = numbers[fill] or whole.reshape(-1, 3).mean(0).round()
    assert np.array_equal(seen[stays], whole[stays])
    assert np.array_equal(seen[~stays], np.broadcast_to(colour, seen[~stays].shape))
    assert 0 < inside.sum() < inside.size
    assert np.array_equal(pixels_of(copy, 1), picture(1))
    assert copy.read(2) == b"no picture"
    with pytest.raises(FileNotFoundError):
        copy.read(3)


def test_rows_are_those_of_the_original(listed: Path, tmp_path: Path) -> None:
    _, copy = made(listed, tmp_path / "copy", low_pass=2.0)
    before = open_source(listed)
    assert [row.key for row in copy.rows] == [row.key for row in before.rows]
    assert [row.label for row in copy.rows] == [row.label for row in before.rows]
    assert [row.boxes for row in copy.rows] == [row.boxes for row in before.rows]


def test_detail_is_blurred(listed: Path, tmp_path: Path) -> None:
    found, copy = made(listed, tmp_path / "copy", low_pass=1.5)
    blurred = Image.fromarray(picture(0)).filter(ImageFilter.GaussianBlur(1.5))
    assert np.array_equal(pixels_of(copy, 0), np.array(blurred))
    assert pixels_of(copy, 0).std() < picture(0).std() / 2
    assert found.unmasked == 0


def test_masks_say_where_objects_are(tmp_path: Path) -> None:
    for place in ("data/a", "masks/a"):
        (tmp_path / place).mkdir(parents=True)
    Image.fromarray(picture(4)).save(tmp_path / "data" / "a" / "1.bmp")
    mask = np.random.default_rng(5).integers(0, 256, (12, 16)).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "masks" / "a" / "1.png")
    source = open_source(tmp_path / "data")
    Variant(source, tmp_path / "copy", Change(mask="foreground"), tmp_path / "masks").make()
    seen = pixels_of(open_source(tmp_path / "copy" / LIST), 0)
    assert np.array_equal(seen[mask < 128], picture(4)[mask < 128])
    assert (seen[mask >= 128] == FILLS["gray"]).all()

    Image.fromarray(mask[:5]).save(tmp_path / "masks" / "a" / "1.png")
    with pytest.raises(SourceError, match="16 x 5 pixels; it must be one of 16 x 12"):
        Variant(source, tmp_path / "other", Change(mask="foreground"), tmp_path / "masks").make()
    (tmp_path / "masks" / "a" / "1.png").unlink()
    with pytest.raises(SourceError, match=r"no picture for a/1\.bmp"):
        Variant(source, tmp_path / "third", Change(mask="foreground"), tmp_path / "masks").make()


def test_boxes_of_another_frame_become_pixels(tmp_path: Path) -> None:
    class One(Source):
        def read(self, row: int) -> bytes:
            out = io.BytesIO()
            Image.fromarray(picture(6)).save(out, "PNG")
            return out.getvalue()

    rows = RowListBuilder()
    rows.add("one", None, 1, RowBoxes((make_box("ear", [8, 8, 16, 24]),), (32, 48)))
    Variant(One(rows.freeze(), ()), tmp_path / "copy", Change(mask="background")).make()
    copy = open_source(tmp_path / "copy" / LIST)
    assert copy.rows[0].boxes.boxes == (make_box("ear", [4, 2, 8, 6]),)
    inside = inside_of((16, 12), [[4, 2, 8, 6]])
    assert np.array_equal(pixels_of(copy, 0)[inside], picture(6)[inside])


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(*[st.integers(-40, 80).map(lambda n: n / 4) for _ in range(4)]).filter(
            lambda b: b[0] < b[2] and b[1] < b[3]
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_boxes(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[tuple[float, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("boxes")
    Image.fromarray(picture(7)).save(folder / "one.png")
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "boxes"), ("one.png", json.dumps(boxes))])
    _, copy = made(folder / "list.csv", folder / "copy", mask="foreground", fill="black")
    inside = inside_of((16, 12), [list(box) for box in boxes])
    assert np.array_equal(pixels_of(copy, 0), picture(7) * ~inside[..., None])
    shutil.rmtree(folder)


def test_a_variant_goes_on_and_only_as_the_same(listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    made(listed, out, mask="background")
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    gone = out / "pictures" / "000000" / "000000000.png"
    gone.unlink()
    kept = out / "pictures" / "000000" / "000000001.png"
    age = kept.stat().st_mtime_ns
    made(listed, out, mask="background")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    assert kept.stat().st_mtime_ns == age
    with pytest.raises(OutputError, match="variant of other pictures or options"):
        made(listed, out, mask="foreground")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else"):
        made(listed, tmp_path / "full", mask="background")


def test_a_run_that_was_killed_goes_on(listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    out.mkdir()
    (out / ".variant.json.partial").write_text("{")
    made(listed, out, mask="background")
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    picture = out / "pictures" / "000000" / "000000000.png"
    half = picture.with_name(f".{picture.name}.partial")
    half.write_bytes(picture.read_bytes()[:9])
    picture.unlink()
    (out / LIST).unlink()
    made(listed, out, mask="background")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole
    assert ".variant.json.partial" not in {path.name for path in whole}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--mask", "background"], "No picture of the source has boxes"),
        (["--low-pass", "0"], "--low-pass must be more than 0"),
        (["--low-pass", "nan"], "--low-pass must be more than 0"),
        (["--low-pass", "2", "--masks", "."], "--masks says where objects are"),
        (["--mask", "background", "--masks", "nowhere"], "nowhere for --masks does not exist"),
        *(
            (["--mask", "background", "--fill", fill], "is no colour; give gray, black, mean, or")
            for fill in ("red", "", "1,2", "1,2,3,4", "256,0,0", "1,-1,0", "1, 2,3", "²,1,1")
        ),
        (["--low-pass", "2", "--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_refusals_of_the_command(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "data" / "one.png")
    assert main(["variant", "--data", "data", "--out", "copy", *options]) == 3
    told = capsys.readouterr()
    assert sentence in told.err
    assert told.err.count("\n") == 1
    assert not told.out
    assert not (tmp_path / "copy").exists()


def test_the_command_tells_what_it_made(listed: Path, tmp_path: Path) -> None:
    command = list(map(str, (VITSCOPE, "variant", "--data", listed, "--out", tmp_path / "copy")))
    run = subprocess.run([*command, "--mask", "background"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "4 pictures" in run.stdout
    assert "1 have no boxes" in run.stdout
    assert "2 could not be read" in run.stdout
    as_json = subprocess.run(
        [*command, "--mask", "background", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(as_json.stdout)["pictures"] == 4


def test_other_masks_are_another_variant(tmp_path: Path) -> None:
    for place in ("data", "masks"):
        (tmp_path / place).mkdir()
    Image.fromarray(picture(4)).save(tmp_path / "data" / "1.bmp")
    source = open_source(tmp_path / "data")
    change = Change(mask="background")
    with pytest.raises(SourceError, match=r"no picture for 1\.bmp"):
        Variant(source, tmp_path / "copy", change, tmp_path / "masks")
    assert not (tmp_path / "copy").exists()
    Image.fromarray(np.eye(12, 16, dtype=np.uint8)).save(tmp_path / "masks" / "1.png")
    with pytest.raises(SourceError, match="has no white, but values up to 1; make objects 255"):
        Variant(source, tmp_path / "copy", change, tmp_path / "masks").make()
    Image.fromarray(np.eye(12, 16, dtype=np.uint8) * 255).save(tmp_path / "masks" / "1.png")
    with pytest.raises(OutputError, match="variant of other pictures or options"):
        Variant(source, tmp_path / "copy", change, tmp_path / "masks")


def test_a_folder_that_cannot_be_made(listed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be made"):
        Variant(open_source(listed), tmp_path / "file", Change(low_pass=1.0))
