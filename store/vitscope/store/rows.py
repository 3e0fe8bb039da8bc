"""The row table of a generation: what each image is called, whether it is valid, its picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitscope.store.arrays import Readable, leading_spec, open_array, write_group
from vitscope.store.boxes import Box, BoxTable, BoxWriter
from vitscope.store.columns import (
    NO_LABEL,
    Appender,
    ByteColumn,
    Edges,
    Labels,
    Line,
    Opener,
    StoredBytes,
)
from vitscope.store.geometry import Rectangle

_VIEWS_PER_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class RowRecord:
    """One image of the frozen row list."""

    row: int
    key: str
    """Path below the source folder, with forward slashes."""
    label: str | None
    valid: bool
    reason: str
    """Why the image could not be read; empty where it could."""
    bytes: int
    """Length of the source file when the rows were frozen."""
    sha256: str
    """Digest of the source bytes; empty where they could not be read."""
    width: int
    """Pixels of the decoded source image, before any transform; 0 where it is invalid."""
    height: int
    boxes: tuple[Box, ...] = ()
    """Labelled rectangles in the source image, where its source gives any."""
    view: Rectangle | None = None
    """What of the source image the model's input shows: x0, y0, x1, y1 in pixels of it, float32
    values; beyond its edges where the transform pads. None where the image is invalid, and in
    indexes of format version 1."""

    def __str__(self) -> str:
        """A line for people; keys come from file names and may hold anything."""
        text = f"row {self.row}  {self.key}{f': {self.reason}' if self.reason else ''}"
        return "".join(char if char.isprintable() else "�" for char in text)


class RowTable:
    """The columns of the row table, read when first asked for."""

    def __init__(
        self,
        path: Path,
        opener: Opener = open_array,
        *,
        has_boxes: bool | None = None,
        has_views: bool | None = None,
    ) -> None:
        """Read the table at `path`; where it is not said what it keeps, the folder says so."""
        self._path = path
        self._open = opener
        kept = (path / "box_edge").exists() if has_boxes is None else has_boxes
        self._boxes = BoxTable(path, opener) if kept else None
        self.has_views = (path / "view").exists() if has_views is None else has_views
        """Whether it is known what of each image the model saw: not in format version 1."""

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Whether each image could be read: (N,)."""
        return self._open(self._path / "valid").read().astype(np.bool_)

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """Index into `label_names`, or `NO_LABEL`: (N,)."""
        return self._open(self._path / "label").read()

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The labels that occur, in the order of their index."""
        return self._column("label_name").texts()

    @cached_property
    def sizes(self) -> npt.NDArray[np.int32]:
        """Width and height of each source image in pixels; zeros where it is invalid: (N, 2)."""
        columns = [self._open(self._path / name).read() for name in ("width", "height")]
        return np.stack(columns, axis=1)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of each source file when the rows were frozen: (N,)."""
        return self._open(self._path / "bytes").read()

    def __len__(self) -> int:
        return len(self.valid)

    def of_bytes(self, sha256: str) -> int | None:
        """The first image whose source bytes have this digest; None where there is none."""
        digest = np.frombuffer(bytes.fromhex(sha256), np.uint8)
        for row in np.flatnonzero(self._digest_heads == digest[:8].view(np.uint64)).tolist():
            if np.array_equal(self._digests.read(row), digest):
                return int(row)
        return None

    def labelled(self, names: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Which images have one of these labels: (N,); raises `KeyError` for one that none has."""
        numbers = {name: number for number, name in enumerate(self.label_names)}
        return np.isin(self.labels, [numbers[name] for name in names])

    @property
    def box_label_names(self) -> tuple[str, ...]:
        """The labels of boxes that occur."""
        return self._boxes.label_names if self._boxes else ()

    def boxed(self, names: Iterable[str] | None = None) -> npt.NDArray[np.bool_]:
        """Which images have a box: (N,); with `names`, one with one of these labels.

        Raises `KeyError` for a label that no box has.
        """
        if names is None:
            return self._boxes.present() if self._boxes else np.zeros(len(self), np.bool_)
        numbers = {name: number for number, name in enumerate(self.box_label_names)}
        wanted = [numbers[name] for name in names]
        return self._boxes.present(wanted) if self._boxes else np.zeros(len(self), np.bool_)

    def key(self, row: int) -> str:
        """The image's name within its source."""
        return self._keys.text(row)

    def has_keys_of(self, other: RowTable) -> bool:
        """Whether every row of both goes by the same key; far faster than asking for each."""
        return self._keys.same_as(other._keys)

    def label(self, row: int) -> str | None:
        """The image's label, where it has one."""
        number = int(self.labels[row])
        return None if number == NO_LABEL else self.label_names[number]

    def reason(self, row: int) -> str:
        """Why the image could not be read; empty where it could."""
        return self._reasons.text(row)

    def record(self, row: int) -> RowRecord:
        """Everything known of one image."""
        digest = bytes(self._digests.read(row))
        return RowRecord(
            row=row,
            key=self.key(row),
            label=self.label(row),
            valid=bool(self.valid[row]),
            reason=self.reason(row),
            bytes=int(self.lengths[row]),
            sha256=digest.hex() if any(digest) else "",
            width=int(self.sizes[row, 0]),
            height=int(self.sizes[row, 1]),
            boxes=self.boxes(row),
            view=self.view(row),
        )

    def boxes(self, row: int) -> tuple[Box, ...]:
        """Labelled rectangles in the source image, in pixels of it; empty where none are known."""
        return self._boxes.of(row) if self._boxes else ()

    def view(self, row: int) -> Rectangle | None:
        """What of the source image the model's input shows, as in `RowRecord.view`."""
        if not self.has_views:
            return None
        x0, y0, x1, y1 = self._views.read(row).tolist()
        return None if math.isnan(x0) else (x0, y0, x1, y1)

    def thumbnail(self, row: int) -> bytes:
        """The picture as the model saw it, as a JPEG; empty for an invalid image.

        Raises `DamagedIndexError` where the index keeps no pictures.
        """
        return self._thumbnails.item(row)

    @cached_property
    def _keys(self) -> StoredBytes:
        return self._column("key")

    @cached_property
    def _reasons(self) -> StoredBytes:
        return self._column("reason")

    @cached_property
    def _thumbnails(self) -> StoredBytes:
        # Too large to hold: pictures stay on the disk.
        return StoredBytes.open(self._path, "thumbnail", self._open, held=False)

    @cached_property
    def _digests(self) -> Readable:
        return self._open(self._path / "sha256")

    @cached_property
    def _digest_heads(self) -> npt.NDArray[np.uint64]:
        """The first eight bytes of each digest, which hardly two images share: (N,); held."""
        return np.ascontiguousarray(self._digests.read()[:, :8]).view(np.uint64)[:, 0]

    @cached_property
    def _views(self) -> Readable:
        return self._open(self._path / "view")

    def _column(self, name: str) -> StoredBytes:
        return StoredBytes.open(self._path, name, self._open)


_NUMBERS = {"valid": "uint8", "bytes": "int64", "width": "int32", "height": "int32"}
"""Columns of one number a row, and their types."""

Parts = Callable[[], Iterable[Sequence[RowRecord]]]
"""Gives the records of a table from its first row on, in parts, as often as it is called."""


def write_rows(path: Path, parts: Parts) -> npt.NDArray[np.int64]:
    """Write the row table, all but the thumbnails, into the group at `path`; gives the valid rows.

    Goes twice over `parts` and holds one part and one shard of every column. The files do not
    depend on how the records are cut. Returns (V,), ascending.
    """
    write_group(path)
    survey = _Survey()
    for part in parts():
        survey.add(part)
    labels = Labels(survey.labels)
    labels.write(path, "label_name")
    columns = _Columns(path, survey, labels)
    valid = [np.zeros(0, np.int64)]
    for part in parts():
        columns.append(part)
        valid.append(np.array([record.row for record in part if record.valid], np.int64))
    columns.close()
    return np.concatenate(valid)


@dataclass(slots=True)
class _Survey:
    """What must be known of all rows before the first is written."""

    rows: int = 0
    key_bytes: int = 0
    reason_bytes: int = 0
    boxes: int = 0
    labels: set[str] = field(default_factory=set)
    box_labels: set[str] = field(default_factory=set)

    def add(self, part: Sequence[RowRecord]) -> None:
        boxes = [box for record in part for box in record.boxes]
        self.rows += len(part)
        self.key_bytes += sum(len(record.key.encode()) for record in part)
        self.reason_bytes += sum(len(record.reason.encode()) for record in part)
        self.boxes += len(boxes)
        self.labels.update(record.label for record in part if record.label is not None)
        self.box_labels.update(box.label for box in boxes if box.label is not None)


class _Columns:
    """All columns of a row table that is being written."""

    def __init__(self, path: Path, survey: _Survey, labels: Labels) -> None:
        rows = survey.rows
        self._labels = labels
        self._label = Line(path / "label", "int32", rows, "row")
        self._numbers = {
            name: Line(path / name, dtype, rows, "row") for name, dtype in _NUMBERS.items()
        }
        spec = leading_spec("uint8", (rows, 32), ("row", "digest"), 1024)
        self._digests = Appender(path / "sha256", spec)
        spec = leading_spec("float32", (rows, 4), ("row", "corner"), _VIEWS_PER_CHUNK)
        self._views = Appender(path / "view", spec)
        self._keys = ByteColumn(path, "key", rows, survey.key_bytes)
        self._reasons = ByteColumn(path, "reason", rows, survey.reason_bytes)
        self._boxes: BoxWriter | None = None
        if survey.boxes:
            self._boxes = BoxWriter(path, rows, survey.boxes, Labels(survey.box_labels))

    def append(self, part: Sequence[RowRecord]) -> None:
        self._label.append(self._labels.numbers(record.label for record in part))
        for name, column in self._numbers.items():
            column.append(np.array([getattr(record, name) for record in part], np.int64))
        digests = b"".join(bytes.fromhex(record.sha256 or "00" * 32) for record in part)
        self._digests.append(np.frombuffer(digests, np.uint8).reshape(-1, 32))
        views = [record.view or (np.nan,) * 4 for record in part]
        self._views.append(np.array(views, np.float32).reshape(-1, 4))
        self._keys.append([record.key.encode() for record in part])
        self._reasons.append([record.reason.encode() for record in part])
        if self._boxes:
            self._boxes.append([record.boxes for record in part])

    def close(self) -> None:
        for number in (self._label, self._digests, self._views, *self._numbers.values()):
            number.close()
        for column in (self._keys, self._reasons):
            column.close()
        if self._boxes:
            self._boxes.close()


class ThumbnailWriter:
    """Appends pictures to the `thumbnail` column; `lengths` (N,) are those of all of them."""

    def __init__(self, path: Path, lengths: npt.NDArray[np.int64]) -> None:
        edges = Edges(path, "thumbnail_edge", len(lengths))
        edges.append_lengths(lengths)
        edges.close()
        self._bytes = Line(path / "thumbnail", "uint8", int(lengths.sum()), "thumbnail_byte")

    def append(self, data: bytes) -> None:
        """Store the next pictures, already joined."""
        self._bytes.append(np.frombuffer(data, np.uint8))

    def close(self) -> None:
        """Check that all pictures came."""
        self._bytes.close()
