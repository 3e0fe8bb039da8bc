"""The row table and its thumbnails: what goes in comes out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Synthetic

from vitscope.store import arrays
from vitscope.store.arrays import open_array
from vitscope.store.boxes import Box
from vitscope.store.columns import NO_LABEL
from vitscope.store.errors import DamagedIndexError
from vitscope.store.files import tree_files
from vitscope.store.rows import RowRecord, RowTable, ThumbnailWriter, write_rows

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
DIGEST = st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex).filter(
    lambda digest: digest.strip("0") != ""
)

SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VIEWS = st.tuples(SINGLE, SINGLE, SINGLE, SINGLE)
BOXES = st.lists(st.builds(Box, st.none() | TEXT, SINGLE, SINGLE, SINGLE, SINGLE), max_size=3)


@st.composite
def tables(draw: st.DrawFn) -> list[RowRecord]:
    valid = draw(st.lists(st.booleans(), min_size=1, max_size=12))
    return [
        RowRecord(
            row=row,
            key=draw(TEXT),
            label=draw(st.none() | st.sampled_from(["", "a", "b", "ü", "🦊"])),
            valid=valid[row],
            reason=draw(TEXT),
            bytes=draw(st.integers(0, 2**62)),
            sha256=draw(DIGEST),
            width=draw(st.integers(0, 2**31 - 1)),
            height=draw(st.integers(0, 2**31 - 1)),
            boxes=tuple(draw(BOXES)),
            view=draw(VIEWS) if valid[row] else None,
        )
        for row in range(len(valid))
    ]


@settings(max_examples=15, deadline=None)
@given(tables())
def test_records_come_back(records: list[RowRecord]) -> None:
    # A folder of its own for every table: the cache of arrays is by path.
    with tempfile.TemporaryDirectory() as folder:
        valid = write_rows(Path(folder), lambda: [records])
        assert valid.tolist() == [record.row for record in records if record.valid]
        table = RowTable(Path(folder))
        assert len(table) == len(records)
        assert [table.record(row) for row in range(len(records))] == records
        assert table.valid.tolist() == [record.valid for record in records]
        assert set(table.label_names) == {r.label for r in records if r.label is not None}
        for row, record in enumerate(records):
            assert (table.key(row), table.label(row)) == (record.key, record.label)
            assert (table.labels[row] == NO_LABEL) == (record.label is None)
            assert table.boxes(row) == record.boxes
            assert table.sizes[row].tolist() == [record.width, record.height]
            assert table.view(row) == record.view
        stored = open_array(Path(folder, "view")).read()
        assert stored.dtype == np.float32
        assert stored.shape == (len(records), 4)
        assert np.isnan(stored).all(1).tolist() == [record.view is None for record in records]


def cut(records: list[RowRecord], cuts: list[int]) -> list[list[RowRecord]]:
    return [records[a:b] for a, b in pairwise([0, *sorted(cuts), len(records)])]


def files(folder: Path) -> dict[str, bytes]:
    return {path.as_posix(): (folder / path).read_bytes() for path in tree_files(folder)}


@settings(max_examples=25, deadline=None)
@given(tables(), st.lists(st.integers(0, 12), max_size=5), st.sampled_from([1, 1 << 16]))
def test_the_files_do_not_depend_on_how_the_records_are_cut(
    records: list[RowRecord], cuts: list[int], line: int
) -> None:
    """With shards of 64 elements too, so that few records fill several and end within one."""
    parts = cut(records, cuts)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(arrays, "_LINE", line)
        whole, pieces = Path(folder, "whole"), Path(folder, "pieces")
        expected = write_rows(whole, lambda: [records])
        assert np.array_equal(write_rows(pieces, lambda: iter(parts)), expected)
        assert files(pieces) == files(whole)
        table = RowTable(pieces)
        assert [table.record(row) for row in range(len(records))] == records


def test_a_table_of_several_shards_in_every_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_LINE", 1)
    monkeypatch.setattr(arrays, "_SHARD_BYTES", 1 << 15)
    count = 2500
    records = [
        RowRecord(
            row=row,
            key=f"n{row % 7}/{'ü' * (row % 5)}{row}.jpg",
            label=f"n{row % 7}" if row % 3 else None,
            valid=row % 11 != 0,
            reason="" if row % 11 else f"bad {row}",
            bytes=row << 33,
            sha256=f"{row + 1:064x}",
            width=row,
            height=count - row,
            boxes=(Box("a" * (row % 3), row, 1, 2, 3),) * (row % 4),
            view=(row / 4, -1.5, row, 9.0) if row % 11 else None,
        )
        for row in range(count)
    ]
    parts = [records[start : start + 97] for start in range(0, count, 97)]
    valid = write_rows(tmp_path, lambda: parts)
    assert valid.tolist() == [row for row in range(count) if row % 11]
    table = RowTable(tmp_path)
    assert [table.record(row) for row in range(count)] == records
    for name in ("key", "key_edge", "label", "sha256", "view", "box_label", "width", "reason"):
        assert len([path for path in (tmp_path / name / "c").rglob("*") if path.is_file()]) > 1


def test_parts_that_change_between_the_passes_are_noticed(tmp_path: Path) -> None:
    record = RowRecord(0, "a", None, True, "", 1, "", 1, 1, view=(0, 0, 1, 1))
    passes: Iterator[list[list[RowRecord]]] = iter(
        [[[record]], [[]], [[record]], [[record], [record]]]
    )
    with pytest.raises(ValueError, match="fewer than the 1 entries"):
        write_rows(tmp_path / "less", lambda: next(passes))
    with pytest.raises(ValueError, match="more than the 1 entries"):
        write_rows(tmp_path / "more", lambda: next(passes))


def test_the_synthetic_table(synthetic: Synthetic) -> None:
    table = RowTable(synthetic.folder / "arrays.zarr" / "rows")
    assert [table.record(row) for row in range(70)] == list(synthetic.records)
    assert [table.thumbnail(row) for row in range(70)] == list(synthetic.thumbnails)
    assert table.label_names == ("café", "fox", "белка", "🦊 fennec")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=12), st.data())
def test_thumbnails_come_back_however_they_are_handed_over(
    pictures: list[bytes], draw: st.DataObject
) -> None:
    joined = b"".join(pictures)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(joined)), max_size=4)))
    parts = [joined[a:b] for a, b in zip([0, *cuts], [*cuts, len(joined)], strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        writer = ThumbnailWriter(Path(folder), np.array([len(p) for p in pictures], np.int64))
        for part in parts:
            writer.append(part)
        writer.close()
        table = RowTable(Path(folder))
        assert [table.thumbnail(row) for row in range(len(pictures))] == pictures


def test_thumbnails_of_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With shards of 64 bytes in place of 4 MiB, so that small pictures fill several."""
    monkeypatch.setattr(arrays, "_LINE", 1)
    chance = np.random.default_rng(3)
    pictures = [chance.bytes(int(size)) for size in chance.integers(0, 50, 30)]
    writer = ThumbnailWriter(tmp_path, np.array([len(p) for p in pictures], np.int64))
    for start in range(0, 30, 7):
        writer.append(b"".join(pictures[start : start + 7]))
    writer.close()
    table = RowTable(tmp_path)
    assert [table.thumbnail(row) for row in range(30)] == pictures
    shards = list((tmp_path / "thumbnail" / "c").iterdir())
    assert len(shards) == -(-sum(map(len, pictures)) // 64)


def test_thumbnails_are_handed_to_the_disk_in_whole_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that were written twice would be read, changed and written again."""
    monkeypatch.setattr(arrays, "_LINE", 1)
    writer = ThumbnailWriter(tmp_path, np.array([150], np.int64))
    writer.append(b"a" * 100)
    assert [path.name for path in sorted((tmp_path / "thumbnail" / "c").iterdir())] == ["0"]
    writer.append(b"b" * 50)
    writer.close()
    assert open_array(tmp_path / "thumbnail").read().tobytes() == b"a" * 100 + b"b" * 50


def test_a_table_that_is_not_there_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedIndexError):
        len(RowTable(tmp_path / "rows"))
