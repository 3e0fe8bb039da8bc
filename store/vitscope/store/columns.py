"""Columns of the row table, written part by part and read by item.

A column takes the same bytes on the disk whatever the parts it came in: what is appended waits
until it fills a shard, so no shard is written twice and no more than one is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.store.arrays import ArraySpec, Readable, create_array, line_spec

NO_LABEL = -1
"""In a column of label numbers: none."""

Opener = Callable[[Path], Readable]


class Appender:
    """An array of known shape, filled along its first axis."""

    def __init__(self, path: Path, spec: ArraySpec) -> None:
        self._array = create_array(path, spec)
        self._length = spec.shape[0]
        self._buffer = np.empty((min(spec.shard[0], self._length), *spec.shape[1:]), spec.dtype)
        self._filled = 0
        self._written = 0

    def append(self, values: npt.NDArray[Any]) -> None:
        """Store the next entries (M, …); a shard goes to the disk when it is full.

        Raises `ValueError` for more entries than the array has.
        """
        if self._written + self._filled + len(values) > self._length:
            raise ValueError(f"more than the {self._length:,} entries that were announced")
        while len(values):
            room = min(len(self._buffer), self._length - self._written) - self._filled
            taken = values[:room]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            values = values[room:]
            if len(taken) == room:
                stop = self._written + self._filled
                self._array.write(self._buffer[: self._filled], slice(self._written, stop))
                self._written, self._filled = stop, 0

    def close(self) -> None:
        """Check that the array is full: raises `ValueError` where entries are missing."""
        if self._written != self._length:
            raise ValueError(f"fewer than the {self._length:,} entries that were announced")


class Line(Appender):
    """A one-dimensional column of `length` numbers."""

    def __init__(self, path: Path, dtype: str, length: int, dimension: str) -> None:
        super().__init__(path, line_spec(dtype, length, dimension))


class Edges(Line):
    """The edges between `count` items of varying length: (count + 1,) int64, from 0."""

    def __init__(self, path: Path, name: str, count: int) -> None:
        super().__init__(path / name, "int64", count + 1, name)
        self._end = 0
        self.append(np.zeros(1, np.int64))

    def append_lengths(self, lengths: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Store where the next items (M,) end."""
        ends = self._end + np.cumsum(lengths, dtype=np.int64)
        self.append(ends)
        self._end = int(ends[-1]) if len(ends) else self._end


class ByteColumn:
    """Byte strings of varying length: `NAME`, all bytes (B,), and `NAME_edge` (count + 1,)."""

    def __init__(self, path: Path, name: str, count: int, total: int) -> None:
        self._bytes = Line(path / name, "uint8", total, f"{name}_byte")
        self._edges = Edges(path, f"{name}_edge", count)

    def append(self, values: Sequence[bytes]) -> None:
        """Store the next strings."""
        self._bytes.append(np.frombuffer(b"".join(values), np.uint8))
        self._edges.append_lengths([len(value) for value in values])

    def close(self) -> None:
        """Check that both arrays are full."""
        self._bytes.close()
        self._edges.close()


class Labels:
    """Numbers for the labels that occur, in the order of the sorted names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)
        self._numbers = {name: number for number, name in enumerate(self._names)}

    def numbers(self, labels: Iterable[str | None]) -> npt.NDArray[np.int32]:
        """The number of each label, or `NO_LABEL`: (M,)."""
        found = [NO_LABEL if label is None else self._numbers[label] for label in labels]
        return np.array(found, np.int32)

    def write(self, path: Path, name: str) -> None:
        """Write the names as the byte column `name` of the group at `path`."""
        names = [each.encode() for each in self._names]
        column = ByteColumn(path, name, len(names), sum(map(len, names)))
        column.append(names)
        column.close()


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Reads a `ByteColumn`: item i lies between edges i and i + 1."""

    read: Callable[[slice], npt.NDArray[np.uint8]]
    edges: npt.NDArray[np.int64]

    @classmethod
    def open(cls, path: Path, name: str, opener: Opener, *, held: bool = True) -> StoredBytes:
        """The column `name` of the group at `path`; its bytes stay on the disk unless `held`."""
        data = opener(path / name)
        read: Callable[[slice], npt.NDArray[np.uint8]] = data.read
        if held:
            read = data.read().__getitem__
        return cls(read, opener(path / f"{name}_edge").read())

    def __len__(self) -> int:
        return len(self.edges) - 1

    def item(self, number: int) -> bytes:
        """The bytes of one item."""
        start, stop = int(self.edges[number]), int(self.edges[number + 1])
        return self.read(slice(start, stop)).tobytes() if stop > start else b""

    def same_as(self, other: StoredBytes) -> bool:
        """Whether all items are equal, one by one."""
        if not np.array_equal(self.edges, other.edges):
            return False
        everything = slice(0, int(self.edges[-1]))
        return np.array_equal(self.read(everything), other.read(everything))

    def text(self, number: int) -> str:
        """One item as UTF-8."""
        return self.item(number).decode()

    def texts(self) -> tuple[str, ...]:
        """All items as UTF-8."""
        return tuple(self.text(number) for number in range(len(self)))
