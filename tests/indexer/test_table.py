"""CSV and Parquet lists."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import write_parquet

from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources import open_source
from vitscope.store.boxes import Box


def csv(folder: Path, text: str | bytes) -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_paths_are_relative_to_the_list_or_absolute(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a,b.jpg").write_bytes(b"in")
    (tmp_path / "out.jpg").write_bytes(b"out")
    text = f'label,path\r\nfox,"a,b.jpg"\r\n,../out.jpg\r\n\r\ncafé,{tmp_path}/out.jpg\r\n'
    source = open_source(csv(tmp_path / "sub", b"\xef\xbb\xbf" + text.encode()))
    assert [(row.key, row.label, row.bytes) for row in source.rows] == [
        ("a,b.jpg", "fox", 2),
        ("../out.jpg", None, 3),
        (f"{tmp_path}/out.jpg", "café", 3),
    ]
    assert [source.read(row) for row in range(3)] == [b"in", b"out", b"out"]


def test_files_that_cannot_be_read_keep_their_rows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    names = ["gone.jpg", "pipe.jpg", "folder.jpg", "nul\0.jpg", "/dev/zero"]
    source = open_source(write_parquet(tmp_path / "list.parquet", {"path": names}))
    assert len(source.rows) == len(names)
    for row in range(len(names)):
        with pytest.raises(OSError, match=r"."):
            source.read(row)


def test_one_box_in_columns(tmp_path: Path) -> None:
    text = "path,x0,y0,x1,y1,label\na.jpg,1,2,3.5,4,fox\nb.jpg,,,,,\nc.jpg,-1,0,1e3,2,\n"
    rows = open_source(csv(tmp_path, text)).rows
    assert [row.boxes.boxes for row in rows] == [
        (Box("fox", 1, 2, 3.5, 4),),
        (),
        (Box(None, -1, 0, 1000, 2),),
    ]


def test_many_boxes_as_json(tmp_path: Path) -> None:
    text = 'path,boxes\na.jpg,"[[1,2,3,4],{""label"":""fox"",""box"":[0,0,1,1]}]"\nb.jpg,[]\nc,\n'
    rows = open_source(csv(tmp_path, text)).rows
    assert [row.boxes.boxes for row in rows] == [
        (Box(None, 1, 2, 3, 4), Box("fox", 0, 0, 1, 1)),
        (),
        (),
    ]


def test_parquet_holds_boxes_as_lists_structs_or_text(tmp_path: Path) -> None:
    wanted = [(Box(None, 1, 2, 3, 4),), ()]
    for cells in (
        [[[1.0, 2.0, 3.0, 4.0]], []],
        [[{"label": None, "box": [1, 2, 3, 4]}], None],
        ["[[1, 2, 3, 4]]", ""],
    ):
        columns = {"path": ["a.jpg", "b.jpg"], "boxes": cells, "label": [7, None]}
        rows = open_source(write_parquet(tmp_path / "list.parquet", columns)).rows
        assert [row.boxes.boxes for row in rows] == wanted
        assert [row.label for row in rows] == ["7", None]


WRONG_CSV = [
    ("", "list.csv has no column `path`; its columns are none."),
    ("file,label\na,b\n", "list.csv has no column `path`; its columns are file, label."),
    ("path,path\na,b\n", "has the column path more than once."),
    ("path\n", "lists no pictures."),
    ("path,label\na.jpg\n", "line 2: it has 1 cell under 2 columns."),
    ("path\na.jpg\n\nb.jpg,c\n", "line 4: it has 2 cells under 1 column."),
    ("path,label\n,fox\n", "line 2, column path: there is none."),
    ("path\na\nb\na\n", "line 4, column path: it is the path of line 2 again; give several"),
    ("path,x0,y0,x1\na,1,2,3\n", "has a column x0 but no column y1."),
    ("path,boxes,x0\na,,1\n", "has boxes both in the column boxes and in x0."),
    ("path,x0,y0,x1,y1\na,1,2,3,4\nb,1,2,three,4\n", "line 3, column x1: 'three' is not a number."),
    ("path,x0,y0,x1,y1\na,1,2,3,\n", "line 2, column y1: there is none, but the row has other"),
    ("path,x0,y0,x1,y1\na,5,2,3,4\n", "line 2, column x0 to y1: the box 5, 2, 3, 4 is empty;"),
    ("path,x0,y0,x1,y1\na,nan,2,3,4\n", "line 2, column x0 to y1: a box has four finite"),
    ("path,x0,y0,x1,y1\na,1,2,3,1e39\n", "line 2, column x0 to y1: a box has four finite"),
    ('path,boxes\na,"[[1,2,3]]"\n', "line 2, column boxes: a box has four finite"),
    ('path,boxes\na,"[1,2,3,4]"\n', "line 2, column boxes: a box is [x0, y0, x1, y1] or"),
    ("path,boxes\na,{}\n", "line 2, column boxes: boxes are a list of"),
    ("path,boxes\na,{\n", "line 2, column boxes: it is not readable as JSON."),
    ('path,label\na,"open\nb,c\n', "it is not CSV ("),
    (b"path\na\nb\xff\n", "is not UTF-8 text, somewhere behind line"),
    (b"path\nb\0x\n", "line 2"),
]


@pytest.mark.parametrize(("text", "words"), WRONG_CSV)
def test_wrong_lists_are_refused_by_line_and_column(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    path = csv(tmp_path, text)
    if text == b"path\nb\0x\n":
        # A null byte is refused by some versions of Python's reader, and by the system by all.
        with pytest.raises((SourceError, OSError)):
            open_source(path).read(0)
        return
    with pytest.raises(SourceError) as caught:
        open_source(path)
    said = str(caught.value)
    assert words in said
    assert said.startswith(str(path))
    assert said.endswith(".")
    assert "\n" not in said


WRONG_PARQUET: list[tuple[dict[str, list[Any]], str]] = [
    ({"file": ["a"]}, "has no column `path`; its columns are file."),
    ({"path": [None]}, "row 1, column path: there is none."),
    ({"path": [7]}, "row 1, column path: there is none."),
    ({"path": ["a", "b"], "label": [1.5, None]}, "row 1, column label: a label is text or"),
    ({"path": ["a", "b"], "boxes": [None, [[1, 2]]]}, "row 2, column boxes: a box has four"),
    ({"path": ["a", "b", "a"]}, "row 3, column path: it is the path of row 1 again;"),
]


@pytest.mark.parametrize(("columns", "words"), WRONG_PARQUET)
def test_wrong_parquet_is_refused_by_row_and_column(
    tmp_path: Path, columns: dict[str, list[Any]], words: str
) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(write_parquet(tmp_path / "list.parquet", columns))
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("cut", [0, 3, 40, -9])
def test_damaged_parquet_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_parquet(tmp_path / "list.parquet", {"path": ["a.jpg"] * 9})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SourceError, match="cannot be read as Parquet") as caught:
        open_source(path)
    assert str(caught.value).endswith(".")


def test_flipped_bits_give_rows_or_an_error(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "path": ["a.jpg", "b.jpg"],
        "boxes": [[[1, 2, 3, 4]], []],
        "label": ["x", None],
    }
    path = write_parquet(tmp_path / "list.parquet", columns)
    whole = path.read_bytes()
    chance = np.random.default_rng(1)
    for place in chance.integers(0, len(whole), 200).tolist():
        data = bytearray(whole)
        data[place] ^= 1 << int(chance.integers(8))
        path.write_bytes(data)
        try:
            rows = open_source(path).rows
        except SourceError:
            continue
        assert 0 < len(rows) <= 2


BOX = st.tuples(*[st.integers(-500, 500)] * 2, *[st.integers(1, 400)] * 2).map(
    lambda b: [b[0] / 4, b[1] / 4, (b[0] + b[2]) / 4, (b[1] + b[3]) / 4]
)
CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
LINES = st.lists(st.tuples(CELL, CELL, st.lists(BOX, max_size=3)), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(LINES.filter(lambda lines: len({line[0] for line in lines}) == len(lines)))
def test_csv_lists_come_back(lines: list[tuple[str, str, list[list[float]]]]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    cells = [[path, label, json.dumps(boxes)] for path, label, boxes in lines]
    text = "\n".join(["path,label,boxes", *[",".join(map(quoted, row)) for row in cells]])
    with tempfile.TemporaryDirectory() as folder:
        rows = open_source(csv(Path(folder), text)).rows
    assert [(row.key, row.label) for row in rows] == [line[:2] for line in lines]
    assert [[list(box.corners) for box in row.boxes.boxes] for row in rows] == [
        line[2] for line in lines
    ]
