"""ImageNet's XML boxes, for any source, up to the published index."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import jpeg, noise
from sources import Item, write_folder, write_tars

from vitscope.client.cli import main
from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources import open_source
from vitscope.store.boxes import Box
from vitscope.store.generation import open_generation

ITEMS = [Item(f"n0{n % 2}/n0{n % 2}_{n}.JPEG", jpeg(noise(n)), f"n0{n % 2}") for n in range(5)]


def annotation(*boxes: tuple[str, int, int, int, int], size: tuple[int, int] | None) -> str:
    """As ImageNet has them: labels and corners, and the size of the picture as it was shown."""
    shown = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in boxes
    )
    return f"<annotation>{shown}<segmented>0</segmented>{objects}</annotation>"


def annotate(root: Path, stem: str, text: str) -> Path:
    path = root / "Annotations" / stem.partition("_")[0] / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root


def test_boxes_are_matched_by_stem_and_scaled_to_the_picture(tmp_path: Path) -> None:
    """Pictures are 90 x 70; the second annotator saw hers at twice that size."""
    fox = ("fox", 3, 4, 50, 60)
    annotate(tmp_path, "n00_0", annotation(fox, ("", 0, 0, 90, 70), size=(90, 70)))
    annotate(tmp_path, "n01_1", annotation(fox, size=(180, 140)))
    annotate(tmp_path, "n01_3", annotation(fox, size=None))
    annotate(tmp_path, "n09_77", annotation(fox, size=None))
    pictures = write_folder(tmp_path / "pictures", ITEMS)
    (pictures / "n01" / "n01_1_broken.JPEG").write_bytes(b"x")
    out = tmp_path / "index"
    line = ["index", "--model", "test_vit", "--random-weights", "--img-size", "64"]
    paths = ["--data", str(pictures), "--boxes", str(tmp_path), "--out", str(out)]
    assert main([*line, *paths]) == 0
    assert main(["verify", "--deep", str(out)]) == 0
    rows = open_generation(out).rows
    assert {rows.key(row): rows.boxes(row) for row in range(len(rows)) if rows.boxes(row)} == {
        "n00/n00_0.JPEG": (Box("fox", 3, 4, 50, 60), Box(None, 0, 0, 90, 70)),
        "n01/n01_1.JPEG": (Box("fox", 1.5, 2, 25, 30),),
        "n01/n01_3.JPEG": (Box("fox", 3, 4, 50, 60),),
    }


def test_they_go_before_the_boxes_of_the_source(tmp_path: Path) -> None:
    items = [Item(item.name, item.data, item.label, ((0, 0, 1, 1),)) for item in ITEMS]
    tars = write_tars(tmp_path / "tars", items, 1)
    annotate(tmp_path, "000001", annotation(("fox", 3, 4, 50, 60), size=None))
    rows = open_source(tars, boxes=tmp_path).rows
    assert [len(row.boxes.boxes) for row in rows] == [1] * 5
    assert rows[1].boxes.boxes == (Box("fox", 3, 4, 50, 60),)
    assert rows[0].boxes.boxes == (Box(None, 0, 0, 1, 1),)
    assert rows.digest() != open_source(tars).rows.digest()


def test_the_digest_covers_the_size_the_annotator_saw(tmp_path: Path) -> None:
    pictures = write_folder(tmp_path / "pictures", ITEMS)
    digests = set()
    for size in ((90, 70), (180, 140), None):
        annotate(tmp_path, "n00_0", annotation(("fox", 3, 4, 50, 60), size=size))
        digests.add(open_source(pictures, boxes=tmp_path).rows.digest())
    assert len(digests) == 3


def test_swapped_corners_are_put_right_and_empty_boxes_said(tmp_path: Path) -> None:
    pictures = write_folder(tmp_path / "pictures", ITEMS)
    text = annotation(("a", 50, 4, 3, 60), ("b", 9, 9, 9, 20), size=None)
    source = open_source(pictures, boxes=annotate(tmp_path, "n00_0", text))
    assert source.rows[0].boxes.boxes == (Box("a", 3, 4, 50, 60),)
    [notice] = source.notices
    assert notice.startswith("Left out (1): boxes that are empty, the first in ")
    assert notice.endswith("n00_0.xml.")


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>'
WRONG = [
    ("<annotation>", "no element found"),
    ("", "no element found"),
    (BOMB, "declares a document type"),
    ("<a><object/></a>", "an object has no bndbox"),
    ("<a><object><bndbox><xmin>1</xmin></bndbox></object></a>", "xmax is None instead of a"),
    (annotation(("fox", 1, 2, 3, 4), size=None).replace(">3<", ">x<"), "xmax is 'x' instead"),
    (annotation(("fox", 1, 2, 3, 4), size=None).replace(">3<", ">inf<"), "xmax is 'inf' instead"),
    (annotation(size=(5, 5)).replace(">5<", ">inf<"), "width is 'inf' instead of a number"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_damaged_annotations_are_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    pictures = write_folder(tmp_path / "pictures", ITEMS)
    with pytest.raises(SourceError, match=words) as caught:
        open_source(pictures, boxes=annotate(tmp_path, "n00_0", text))
    assert "n00_0.xml" in str(caught.value)
    assert str(caught.value).endswith(".")


def test_folders_without_fitting_annotations_are_refused(tmp_path: Path) -> None:
    pictures = write_folder(tmp_path / "pictures", ITEMS)
    with pytest.raises(SourceError, match="There is no folder of annotations"):
        open_source(pictures, boxes=tmp_path / "none")
    with pytest.raises(SourceError, match="holds no annotation; vitscope looks for files"):
        open_source(pictures, boxes=pictures)
    annotate(tmp_path, "n07_7", annotation(size=None))
    with pytest.raises(SourceError, match=r"first picture is n00/n00_0.JPEG, .*n07/n07_7.xml\."):
        open_source(pictures, boxes=tmp_path)
    annotate(tmp_path / "again", "n07_7", annotation(size=None))
    with pytest.raises(SourceError, match="has two annotations called n07_7"):
        open_source(pictures, boxes=tmp_path)
