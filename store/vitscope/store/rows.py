"""The row table of a generation: what each image is called, whether it is valid, its picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitscope.store.arrays import (
    Array,
    create_array,
    join_bytes,
    leading_spec,
    line_spec,
    open_array,
    write_array,
    write_group,
)
from vitscope.store.boxes import Box, BoxTable, write_boxes

NO_LABEL = -1


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
    boxes: tuple[Box, ...] = ()
    """Labelled rectangles in the source image, where its source gives any."""

    def __str__(self) -> str:
        """A line for people; keys come from file names and may hold anything."""
        text = f"row {self.row}  {self.key}{f': {self.reason}' if self.reason else ''}"
        return "".join(char if char.isprintable() else "�" for char in text)


class RowTable:
    """The columns of the row table, read when first asked for."""

    def __init__(
        self,
        path: Path,
        opener: Callable[[Path], Array] = open_array,
        *,
        has_boxes: bool | None = None,
    ) -> None:
        """Read the table at `path`; without `has_boxes`, the folder says whether it keeps boxes."""
        self._path = path
        self._open = opener
        kept = (path / "box_edge").exists() if has_boxes is None else has_boxes
        self._boxes = BoxTable(path, opener) if kept else None

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
        column = self._column("label_name")
        return tuple(column.text(number) for number in range(len(column)))

    def __len__(self) -> int:
        return len(self.valid)

    def key(self, row: int) -> str:
        """The image's name within its source."""
        return self._keys.text(row)

    def label(self, row: int) -> str | None:
        """The image's label, where it has one."""
        number = int(self.labels[row])
        return None if number == NO_LABEL else self.label_names[number]

    def record(self, row: int) -> RowRecord:
        """Everything known of one image."""
        digest = bytes(self._digests.read(row))
        return RowRecord(
            row=row,
            key=self.key(row),
            label=self.label(row),
            valid=bool(self.valid[row]),
            reason=self._reasons.text(row),
            bytes=int(self._lengths[row]),
            sha256=digest.hex() if any(digest) else "",
            boxes=self.boxes(row),
        )

    def boxes(self, row: int) -> tuple[Box, ...]:
        """Labelled rectangles in the source image, in pixels of it; empty where none are known."""
        return self._boxes.of(row) if self._boxes else ()

    def thumbnail(self, row: int) -> bytes:
        """The picture as the model saw it, as a JPEG; empty for an invalid image.

        Raises `DamagedIndexError` where the index keeps no pictures.
        """
        return self._thumbnails.item(row)

    @cached_property
    def _keys(self) -> _Column:
        return self._column("key")

    @cached_property
    def _reasons(self) -> _Column:
        return self._column("reason")

    @cached_property
    def _thumbnails(self) -> _Column:
        # Too large to hold: pictures stay on the disk.
        return _Column(self._open(self._path / "thumbnail").read, self._edges("thumbnail"))

    @cached_property
    def _digests(self) -> Array:
        return self._open(self._path / "sha256")

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int64]:
        return self._open(self._path / "bytes").read()

    def _column(self, name: str) -> _Column:
        data = self._open(self._path / name).read()
        return _Column(data.__getitem__, self._edges(name))

    def _edges(self, name: str) -> npt.NDArray[np.int64]:
        return self._open(self._path / f"{name}_edge").read()


@dataclass(frozen=True, slots=True)
class _Column:
    """Byte strings of varying length: item i lies between edges i and i + 1."""

    read: Callable[[slice], npt.NDArray[np.uint8]]
    edges: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.edges) - 1

    def item(self, number: int) -> bytes:
        start, stop = int(self.edges[number]), int(self.edges[number + 1])
        return self.read(slice(start, stop)).tobytes() if stop > start else b""

    def text(self, number: int) -> str:
        return self.item(number).decode()


def write_rows(path: Path, records: list[RowRecord]) -> None:
    """Write the row table, all but the thumbnails, into the group at `path`."""
    write_group(path)
    names = sorted({record.label for record in records if record.label is not None})
    numbers = {name: number for number, name in enumerate(names)}
    labels = [NO_LABEL if r.label is None else numbers[r.label] for r in records]
    digests = b"".join(bytes.fromhex(record.sha256 or "00" * 32) for record in records)
    _write_line(path / "valid", np.array([r.valid for r in records], np.uint8), "row")
    _write_line(path / "label", np.array(labels, np.int32), "row")
    _write_line(path / "bytes", np.array([r.bytes for r in records], np.int64), "row")
    table = np.frombuffer(digests, np.uint8).reshape(-1, 32)
    write_array(path / "sha256", table, leading_spec("uint8", table.shape, ("row", "digest"), 1024))
    _write_column(path, "key", [record.key.encode() for record in records])
    _write_column(path, "reason", [record.reason.encode() for record in records])
    _write_column(path, "label_name", [name.encode() for name in names])
    write_boxes(path, [record.boxes for record in records])


class ThumbnailWriter:
    """Appends pictures to the `thumbnail` column, whole shards at a time."""

    def __init__(self, path: Path, lengths: npt.NDArray[np.int64]) -> None:
        edges = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=edges[1:])
        _write_line(path / "thumbnail_edge", edges, "thumbnail_edge")
        spec = line_spec("uint8", int(edges[-1]), "thumbnail_byte")
        self._array = create_array(path / "thumbnail", spec)
        self._shard = spec.shard[0]
        self._pending = bytearray()
        self._written = 0

    def append(self, data: bytes) -> None:
        """Store the next pictures, already joined."""
        self._pending += data
        self._flush(len(self._pending) // self._shard * self._shard)

    def close(self) -> None:
        """Store what is left."""
        self._flush(len(self._pending))

    def _flush(self, count: int) -> None:
        if count:
            values = np.frombuffer(bytes(self._pending[:count]), np.uint8)
            self._array.write(values, slice(self._written, self._written + count))
            self._written += count
            del self._pending[:count]


def _write_line(path: Path, values: npt.NDArray[np.generic], dimension: str) -> None:
    write_array(path, values, line_spec(values.dtype.name, len(values), dimension))


def _write_column(path: Path, name: str, values: list[bytes]) -> None:
    data, edges = join_bytes(values)
    _write_line(path / name, data, f"{name}_byte")
    _write_line(path / f"{name}_edge", edges, f"{name}_edge")
