"""Which images take part in an answer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from vitscope.server.errors import InvalidArgumentError
from vitscope.server.queries.checks import check_labels, check_row
from vitscope.store.generation import Generation

MAX_ROWS = 100_000
_HELD = 16
"""Selections remembered for each generation: those of a caller who asks about many channels."""


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """Lets an image through if all that is given does."""

    labels: tuple[str, ...] = ()
    """Images with one of these; empty for all."""
    rows: tuple[int, ...] = ()
    """Images of these; empty for all."""
    has_box: bool | None = None
    """Images with a labelled box or without one."""
    box_labels: tuple[str, ...] = ()
    """Images with a box that has one of these."""


ALL = ImageFilter()


class _Selections:
    """The rows that filters without row sets last gave."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: OrderedDict[ImageFilter, npt.NDArray[np.int64]] = OrderedDict()

    def rows(self, generation: Generation, asked: ImageFilter) -> npt.NDArray[np.int64]:
        with self._lock:
            found = self._held.get(asked)
            if found is not None:
                self._held.move_to_end(asked)
                return found
        found = _selected(generation, asked)
        with self._lock:
            self._held[asked] = found
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
        return found


_selections: WeakKeyDictionary[Generation, _Selections] = WeakKeyDictionary()
_lock = Lock()


def select(generation: Generation, asked: ImageFilter) -> npt.NDArray[np.int64] | None:
    """Valid rows (M,) that the filter lets through, ascending; None where that is all of them."""
    if asked == ALL:
        return None
    named = _named(generation, asked)
    _check(generation, asked)
    with _lock:
        mine = _selections.setdefault(generation, _Selections())
    rows = mine.rows(generation, replace(asked, rows=()))
    return rows if named is None else rows[named[rows]]


def _named(generation: Generation, asked: ImageFilter) -> npt.NDArray[np.bool_] | None:
    """Which rows are named (N,); None where none is, which leaves all."""
    if len(asked.rows) > MAX_ROWS:
        raise InvalidArgumentError(
            f"filter.rows has {len(asked.rows)} entries; give at most {MAX_ROWS:,}, or ask for "
            "labels."
        )
    if not asked.rows:
        return None
    rows = np.fromiter(asked.rows, np.int64, len(asked.rows))
    for row in (int(rows.min()), int(rows.max())):
        check_row(generation, row, "filter.rows")
    named = np.zeros(generation.manifest.rows, np.bool_)
    named[rows] = True
    return named


def _check(generation: Generation, asked: ImageFilter) -> None:
    table = generation.rows
    check_labels("filter.labels", asked.labels, table.label_names)
    check_labels("filter.box_labels", asked.box_labels, table.box_label_names)
    if asked.box_labels and asked.has_box is False:
        raise InvalidArgumentError(
            "filter.has_box asks for images without a box and filter.box_labels for labels of "
            "boxes; leave one of them out."
        )


def _selected(generation: Generation, asked: ImageFilter) -> npt.NDArray[np.int64]:
    table = generation.rows
    mask = table.valid.copy()
    if asked.labels:
        mask &= table.labelled(asked.labels)
    if asked.has_box is not None:
        mask &= table.boxed() == asked.has_box
    if asked.box_labels:
        mask &= table.boxed(asked.box_labels)
    return np.flatnonzero(mask)
