"""Boxes of the row table: in plain Zarr, absent where there are none, missed where lost."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from synthetic import Synthetic

from vitscope.store import layout
from vitscope.store.boxes import Box
from vitscope.store.errors import DamagedIndexError
from vitscope.store.generation import open_generation
from vitscope.store.publish import publish
from vitscope.store.rows import RowRecord, RowTable, write_rows

BOXES: list[tuple[Box, ...]] = [
    (),
    (Box("fox", 1, 2, 3.5, 4), Box(None, 0, 0, 1, 1), Box("белка", -5, 0, 9, 1e6)),
    (),
    (Box("fox", 7, 8, 9, 10),),
]
ARRAYS = {"box", "box_edge", "box_label", "box_label_name", "box_label_name_edge"}


def records(boxes: Sequence[tuple[Box, ...]]) -> list[RowRecord]:
    return [
        RowRecord(row, f"{row}.jpg", None, True, "", 9, "", 8, 8, each)
        for row, each in enumerate(boxes)
    ]


def test_zarr_python_and_xarray_read_the_boxes(tmp_path: Path) -> None:
    write_rows(tmp_path, lambda: [records(BOXES)])
    group = zarr.open_group(tmp_path, mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = xarray.open_zarr(tmp_path, consolidated=False)
    flat = [box for some in BOXES for box in some]
    corners = np.array([box.corners for box in flat], np.float32)
    for values, dtype in ((group["box"], np.float32), (group["box_edge"], np.int64)):
        assert isinstance(values, zarr.Array)
        assert values.dtype == dtype
    assert np.array_equal(np.asarray(group["box"]), corners)
    assert np.asarray(group["box_edge"]).tolist() == [0, 0, 3, 3, 4]
    assert np.asarray(group["box_label"]).tolist() == [0, -1, 1, 0]
    names = np.asarray(group["box_label_name"]).tobytes()
    edges = np.asarray(group["box_label_name_edge"]).tolist()
    assert [names[edges[n] : edges[n + 1]].decode() for n in range(2)] == ["fox", "белка"]
    assert table["box"].dims == ("box", "corner")
    assert table["box_label"].dims == ("box",)
    for name in ARRAYS:
        assert np.array_equal(table[name].values, np.asarray(group[name]))


def test_a_table_without_boxes_has_no_arrays_of_them(tmp_path: Path) -> None:
    write_rows(tmp_path, lambda: [records([(), ()])])
    assert not ARRAYS & {path.name for path in tmp_path.iterdir()}
    assert RowTable(tmp_path).boxes(1) == ()


def test_many_boxes_fill_several_chunks(tmp_path: Path) -> None:
    boxes = [tuple(Box(None, n, k, n + 1, k + 1) for k in range(n % 4)) for n in range(9000)]
    write_rows(tmp_path, lambda: [records(boxes)])
    table = RowTable(tmp_path)
    assert [table.boxes(row) for row in range(9000)] == boxes


def publish_with_boxes(synthetic: Synthetic, index: Path) -> Path:
    """The synthetic index again, with boxes in two rows."""
    staged = index / layout.WORK / "staged"
    shutil.copytree(synthetic.folder, staged)
    (staged / layout.MANIFEST).unlink()
    rows = layout.rows_path(staged)
    for path in rows.iterdir():
        if path.is_dir() and not path.name.startswith("thumbnail"):
            shutil.rmtree(path)
    boxes = [*BOXES, *[()] * (len(synthetic.records) - len(BOXES))]
    table = [
        replace(record, boxes=some) for record, some in zip(synthetic.records, boxes, strict=True)
    ]
    write_rows(rows, lambda: [table])
    publish(index, staged, synthetic.manifest)
    return index


def test_boxes_are_published(synthetic: Synthetic, tmp_path: Path) -> None:
    rows = open_generation(publish_with_boxes(synthetic, tmp_path / "index")).rows
    assert [rows.boxes(row) for row in range(4)] == BOXES
    assert rows.record(3).boxes == BOXES[3]
    assert rows.boxes(69) == ()


@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_a_lost_array_is_damage_and_not_a_picture_without_boxes(
    synthetic: Synthetic, tmp_path: Path, name: str
) -> None:
    generation = open_generation(publish_with_boxes(synthetic, tmp_path / "index"))
    shutil.rmtree(layout.rows_path(generation.path) / name)
    with pytest.raises(DamagedIndexError):
        open_generation(tmp_path / "index").rows.boxes(1)
