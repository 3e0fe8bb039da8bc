"""Boxes on their way from a source to the index: checked, and kept as columns."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.indexer.sources.texts import Names, utf8
from vitscope.store.boxes import Box

Frame = tuple[int, int]
"""Width and height of the picture that an annotator saw."""

_NO_FRAME = (0, 0)


@dataclass(frozen=True, slots=True)
class RowBoxes:
    """The boxes of one image."""

    boxes: tuple[Box, ...] = ()
    frame: Frame | None = None
    """Size of the picture that the boxes were drawn on, where it may differ from the image's."""

    def __bool__(self) -> bool:
        return bool(self.boxes)

    def in_pixels(self, width: int, height: int) -> tuple[Box, ...]:
        """The boxes in pixels of an image of this size."""
        if self.frame is None or self.frame == (width, height):
            return self.boxes
        x, y = width / self.frame[0], height / self.frame[1]
        return tuple(
            Box(b.label, *_single((b.x0 * x, b.y0 * y, b.x1 * x, b.y1 * y))) for b in self.boxes
        )


NO_BOXES = RowBoxes()


def make_box(label: str | None, corners: Sequence[Any]) -> Box:
    """A checked box; raises ValueError with the fault, to be put behind where it was found."""
    if not all(isinstance(c, int | float) and not isinstance(c, bool) for c in corners):
        raise ValueError("a box has four numbers x0, y0, x1, y1")
    try:
        rounded = _single([float(corner) for corner in corners])
    except OverflowError:
        rounded = (math.inf,)
    if len(rounded) != 4 or not all(map(math.isfinite, rounded)):
        raise ValueError("a box has four finite numbers x0, y0, x1, y1")
    x0, y0, x1, y1 = rounded
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} is empty; x1 must exceed x0, and y1 y0"
        )
    return Box(None if label is None else utf8(label), x0, y0, x1, y1)


def boxes_from(value: Any) -> RowBoxes:
    """Boxes of a decoded JSON list, whose entries are [x0, y0, x1, y1] or {"label", "box"}.

    Raises ValueError with the fault.
    """
    if value is None:
        return NO_BOXES
    if not isinstance(value, list):
        raise ValueError("boxes are a list of [x0, y0, x1, y1] or of {label, box}")
    return RowBoxes(tuple(_box_from(each) for each in value))


def boxes_from_json(text: str | bytes) -> RowBoxes:
    """Boxes of a JSON text; raises ValueError with the fault."""
    return boxes_from(load_json(text))


def load_json(text: str | bytes) -> Any:
    """Decode JSON of unknown origin; raises ValueError with the fault."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not readable as JSON") from None


def label_from(value: Any) -> str | None:
    """A label that was written as text or as a whole number; raises ValueError for another."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError("a label is text or a whole number")


def _box_from(value: Any) -> Box:
    label = None
    if isinstance(value, dict):
        label, value = label_from(value.get("label")), value.get("box")
    if not isinstance(value, list):
        raise ValueError("a box is [x0, y0, x1, y1] or {label, box}")
    return make_box(label, value)


def _single(values: Sequence[float]) -> tuple[float, ...]:
    """The nearest float32 values: what the index will hold is what the digest covers."""
    with np.errstate(over="ignore"):
        return tuple(np.array(values, np.float32).tolist())


@dataclass(frozen=True, slots=True, eq=False)
class BoxList:
    """The boxes of all rows, as columns."""

    _edges: npt.NDArray[np.int64]
    _corners: npt.NDArray[np.float32]
    _labels: npt.NDArray[np.int32]
    _names: tuple[str, ...]
    _frames: npt.NDArray[np.int32]

    def __getitem__(self, row: int) -> RowBoxes:
        start, stop = int(self._edges[row]), int(self._edges[row + 1])
        if start == stop:
            return NO_BOXES
        labels = [None if n < 0 else self._names[n] for n in self._labels[start:stop].tolist()]
        corners = self._corners[start:stop].tolist()
        boxes = tuple(Box(label, *each) for label, each in zip(labels, corners, strict=True))
        width, height = self._frames[row].tolist()
        return RowBoxes(boxes, None if (width, height) == _NO_FRAME else (width, height))


class BoxListBuilder:
    """Collects the boxes of one row after the other."""

    def __init__(self) -> None:
        self._edges = array("q", [0])
        self._corners = array("f")
        self._labels = Names()
        self._frames = array("i")

    def add(self, row: RowBoxes) -> None:
        """Append the boxes of one row."""
        for box in row.boxes:
            self._corners.extend(box.corners)
            self._labels.add(box.label)
        self._edges.append(len(self._corners) // 4)
        self._frames.extend(row.frame or _NO_FRAME)

    def freeze(self) -> BoxList:
        """The boxes of all rows added so far."""
        return BoxList(
            np.array(self._edges, np.int64),
            np.array(self._corners, np.float32).reshape(-1, 4),
            *self._labels.freeze(),
            np.array(self._frames, np.int32).reshape(-1, 2),
        )
