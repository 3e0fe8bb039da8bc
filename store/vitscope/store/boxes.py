"""Boxes of the row table: labelled rectangles in the source images, where the source has any.

    box (M, 4) float32        x0, y0, x1, y1 of all boxes, in the order of their rows
    box_edge (N + 1) int64    the boxes of row i lie between edges i and i + 1
    box_label (M) int32       index into box_label_name, or -1
    box_label_name …          the labels that occur, as UTF-8 bytes and edges

An index in which no row has a box has none of these arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitscope.store.arrays import Array, join_bytes, leading_spec, line_spec, write_array

_UNLABELLED = -1
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

    def __init__(self, path: Path, opener: Callable[[Path], Array]) -> None:
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
            Box(None if label == _UNLABELLED else self._names[label], *each)
            for label, each in zip(labels, corners, strict=True)
        )

    @cached_property
    def edges(self) -> npt.NDArray[np.int64]:
        """Where the boxes of each row begin and end: (N + 1,)."""
        return self._open(self._path / "box_edge").read()

    @cached_property
    def _corners(self) -> Array:
        return self._open(self._path / "box")

    @cached_property
    def _labels(self) -> npt.NDArray[np.int32]:
        return self._open(self._path / "box_label").read()

    @cached_property
    def _names(self) -> tuple[str, ...]:
        data = self._open(self._path / "box_label_name").read().tobytes()
        edges = self._open(self._path / "box_label_name_edge").read().tolist()
        pairs = pairwise(edges)
        return tuple(data[start:stop].decode() for start, stop in pairs)


def write_boxes(path: Path, boxes: Sequence[Sequence[Box]]) -> None:
    """Write the boxes of all rows into the row table at `path`; nothing where there are none."""
    flat = [box for some in boxes for box in some]
    if not flat:
        return
    edges = np.zeros(len(boxes) + 1, np.int64)
    np.cumsum([len(some) for some in boxes], out=edges[1:])
    names = sorted({box.label for box in flat if box.label is not None})
    numbers = {name: number for number, name in enumerate(names)}
    labels = [_UNLABELLED if box.label is None else numbers[box.label] for box in flat]
    corners = np.array([box.corners for box in flat], np.float32)
    spec = leading_spec("float32", corners.shape, ("box", "corner"), _BOXES_PER_CHUNK)
    write_array(path / "box", corners, spec)
    _write_line(path / "box_label", np.array(labels, np.int32), "box")
    data, name_edges = join_bytes([name.encode() for name in names])
    _write_line(path / "box_label_name", data, "box_label_name_byte")
    _write_line(path / "box_label_name_edge", name_edges, "box_label_name_edge")
    _write_line(path / "box_edge", edges, "box_edge")


def _write_line(path: Path, values: npt.NDArray[np.generic], dimension: str) -> None:
    write_array(path, values, line_spec(values.dtype.name, len(values), dimension))
