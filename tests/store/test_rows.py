"""The row table and its thumbnails: what goes in comes out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Synthetic

from vitscope.store import arrays
from vitscope.store.arrays import open_array
from vitscope.store.boxes import Box
from vitscope.store.errors import DamagedIndexError
from vitscope.store.rows import NO_LABEL, RowRecord, RowTable, ThumbnailWriter, write_rows

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
DIGEST = st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex).filter(
    lambda digest: digest.strip("0") != ""
)

SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False)
BOXES = st.lists(st.builds(Box, st.none() | TEXT, SINGLE, SINGLE, SINGLE, SINGLE), max_size=3)


@st.composite
def tables(draw: st.DrawFn) -> list[RowRecord]:
    count = draw(st.integers(1, 12))
    return [
        RowRecord(
            row=row,
            key=draw(TEXT),
            label=draw(st.none() | st.sampled_from(["", "a", "b", "ü", "🦊"])),
            valid=draw(st.booleans()),
            reason=draw(TEXT),
            bytes=draw(st.integers(0, 2**62)),
            sha256=draw(DIGEST),
            boxes=tuple(draw(BOXES)),
        )
        for row in range(count)
    ]


@settings(max_examples=15, deadline=None)
@given(tables())
def test_records_come_back(records: list[RowRecord]) -> None:
    # A folder of its own for every table: the cache of arrays is by path.
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), records)
        table = RowTable(Path(folder))
        assert len(table) == len(records)
        assert [table.record(row) for row in range(len(records))] == records
        assert table.valid.tolist() == [record.valid for record in records]
        assert set(table.label_names) == {r.label for r in records if r.label is not None}
        for row, record in enumerate(records):
            assert (table.key(row), table.label(row)) == (record.key, record.label)
            assert (table.labels[row] == NO_LABEL) == (record.label is None)
            assert table.boxes(row) == record.boxes


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
