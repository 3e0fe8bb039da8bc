"""Boxes of the row table: labelled rectangles in the source images, where the source has any.

    box (M, 4) float32        x0, y0, x1, y1 of all boxes, in the order of their rows
    box_edge (N + 1) int64    the boxes of row i lie between edges i and i + 1
    box_label (M) int32       index into box_label_name, or -1
    box_label_name …          the labels that occur, as UTF-8 bytes and edges

An index in which no row has a box has none of these arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitscope.store.arrays import Readable, leading_spec
from vitscope.store.columns import NO_LABEL, Appender, Edges, Labels, Line, Opener, StoredBytes

_BOXES_PER_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of the source image, half-open: x0 <= x < x1 and y0 <= y < y1."""

    label: str | None
    x0: float
    """Left edge, from the left border of the image; a float32 value, like all four."""
    y0: float
    """Upper edge, from the upper border."""
    x1: float
    y1: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1."""
        return self.x0, self.y0, self.x1, self.y1


class BoxTable:
    """Reads the boxes of single rows; edges and labels are held once they were asked for."""

    def __init__(self, path: Path, opener: Opener) -> None:
        self._path = path
        self._open = opener

    def of(self, row: int) -> tuple[Box, ...]:
        """The boxes of one row, in the order of the source."""
        start, stop = int(self.edges[row]), int(self.edges[row + 1])
        if start == stop:
            return ()
        corners = self._corners.read(slice(start, stop)).tolist()
        labels = self._labels[start:stop].tolist()
        return tuple(
            Box(None if label == NO_LABEL else self.label_names[label], *each)
            for label, each in zip(labels, corners, strict=True)
        )

    def present(self, labels: Sequence[int] | None = None) -> npt.NDArray[np.bool_]:
        """Which rows have a box: (N,); with `labels`, one whose label's number is among them."""
        if labels is None:
            return np.diff(self.edges) > 0
        rows = np.repeat(np.arange(len(self.edges) - 1), np.diff(self.edges))  # [M]
        found = np.zeros(len(self.edges) - 1, np.bool_)
        found[rows[np.isin(self._labels, labels)]] = True
        return found

    @cached_property
    def edges(self) -> npt.NDArray[np.int64]:
        """Where the boxes of each row begin and end: (N + 1,)."""
        return self._open(self._path / "box_edge").read()

    @cached_property
    def _corners(self) -> Readable:
        return self._open(self._path / "box")

    @cached_property
    def _labels(self) -> npt.NDArray[np.int32]:
        return self._open(self._path / "box_label").read()

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The labels that occur, in the order of their numbers."""
        return StoredBytes.open(self._path, "box_label_name", self._open).texts()


class BoxWriter:
    """Writes `count` boxes of `rows` rows into the row table at `path`, part by part."""

    def __init__(self, path: Path, rows: int, count: int, labels: Labels) -> None:
        labels.write(path, "box_label_name")
        self._labels = labels
        spec = leading_spec("float32", (count, 4), ("box", "corner"), _BOXES_PER_CHUNK)
        self._corners = Appender(path / "box", spec)
        self._numbers = Line(path / "box_label", "int32", count, "box")
        self._edges = Edges(path, "box_edge", rows)

    def append(self, boxes: Sequence[Sequence[Box]]) -> None:
        """Store the boxes of the next rows."""
        flat = [box for some in boxes for box in some]
        self._corners.append(np.array([box.corners for box in flat], np.float32).reshape(-1, 4))
        self._numbers.append(self._labels.numbers(box.label for box in flat))
        self._edges.append_lengths([len(some) for some in boxes])

    def close(self) -> None:
        """Check that every box came."""
        for column in (self._corners, self._numbers, self._edges):
            column.close()
