"""The frozen row list: which images there are, in which order, before the first forward.

Lists have millions of rows, so they are kept as columns; a `SourceRow` is made when asked for.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from vitscope.indexer.sources.boxlist import NO_BOXES, BoxList, BoxListBuilder, RowBoxes
from vitscope.indexer.sources.texts import Names, Texts, TextsBuilder


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One image of the row list."""

    key: str
    """What the image is called within its source; no two rows share one."""
    label: str | None
    """Its class, where the source says."""
    bytes: int
    """Length of the encoded image when the list was frozen; 0 where it could not be read."""
    boxes: RowBoxes = NO_BOXES
    """Labelled rectangles in the image, where the source gives any."""


@dataclass(frozen=True, slots=True, eq=False)
class Source(ABC):
    """A row list and the encoded images behind it; safe to read from several threads."""

    rows: RowList
    notices: tuple[str, ...]
    """What was passed over or mended while the list was frozen, a sentence each."""

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The encoded image of a row; raises OSError where it cannot be read."""


@dataclass(frozen=True, slots=True, eq=False)
class RowList(Sequence[SourceRow]):
    """The rows of a source, as columns: some seventy bytes a row."""

    keys: Texts
    _labels: npt.NDArray[np.int32]
    _label_names: tuple[str, ...]
    sizes: npt.NDArray[np.int64]
    """Length of every encoded image in bytes: (N,)."""
    boxes: BoxList

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, row: int) -> SourceRow: ...
    @overload
    def __getitem__(self, row: slice) -> list[SourceRow]: ...
    def __getitem__(self, row: int | slice) -> SourceRow | list[SourceRow]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        label = int(self._labels[row])
        return SourceRow(
            self.keys[row],
            None if label < 0 else self._label_names[label],
            int(self.sizes[row]),
            self.boxes[row],
        )

    def __iter__(self) -> Iterator[SourceRow]:
        return (self[row] for row in range(len(self)))

    def digest(self) -> str:
        """SHA-256 over keys, labels, byte lengths and boxes, in order."""
        digest = hashlib.sha256()
        for row in self:
            fields: list[object] = [row.key, row.label, row.bytes]
            # A list without boxes keeps the digest it had before there were any.
            if row.boxes:
                fields += [[[b.label, *b.corners] for b in row.boxes.boxes], row.boxes.frame]
            digest.update(json.dumps(fields).encode() + b"\n")
        return digest.hexdigest()


class RowListBuilder:
    """Collects rows in order; keys that occur twice are told apart when the list is frozen."""

    def __init__(self) -> None:
        self._keys = TextsBuilder()
        self._hashes = array("q")
        self._labels = Names()
        self._sizes = array("q")
        self._boxes = BoxListBuilder()

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, key: str, label: str | None, size: int, boxes: RowBoxes = NO_BOXES) -> None:
        """Append one row."""
        self._keys.add(key)
        self._hashes.append(hash(key))
        self._labels.add(label)
        self._sizes.append(size)
        self._boxes.add(boxes)

    def repeated(self) -> Iterator[tuple[int, int]]:
        """Rows whose key an earlier row has too: (row, first row with that key), in order."""
        hashes = np.array(self._hashes, np.int64)
        ordered = np.sort(hashes)
        suspects = ordered[1:][ordered[1:] == ordered[:-1]]
        if not suspects.size:
            return
        keys = self._keys.freeze()
        first: dict[str, int] = {}
        for row in np.flatnonzero(np.isin(hashes, suspects)).tolist():
            before = first.setdefault(keys[row], row)
            if before != row:
                yield row, before

    def freeze(self) -> RowList:
        """The finished list; the second `a.jpg` is called `a.jpg#2`."""
        repeated = list(self.repeated())
        keys = self._keys.freeze()
        if repeated:
            keys = _told_apart(keys, [row for row, _ in repeated])
        return RowList(
            keys,
            *self._labels.freeze(),
            np.array(self._sizes, np.int64),
            self._boxes.freeze(),
        )


def _told_apart(keys: Texts, repeated: list[int]) -> Texts:
    """`keys` with a number behind each of the `repeated` rows' own."""
    taken = set(keys)
    renamed = {}
    counts: dict[str, int] = {}
    for row in repeated:
        key = keys[row]
        number = counts.get(key, 1) + 1
        while f"{key}#{number}" in taken:
            number += 1
        counts[key] = number
        renamed[row] = f"{key}#{number}"
        taken.add(renamed[row])
    builder = TextsBuilder()
    for row, key in enumerate(keys):
        builder.add(renamed.get(row, key))
    return builder.freeze()
