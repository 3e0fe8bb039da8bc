"""Reading published arrays straight from their shard files, every chunk compared with its seal.

Where a chunk lies follows from its place in the array, and what it has to be from its seal: a read
needs neither a shard's index nor the checksum stored with the chunk, but the bytes themselves.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
import numpy.typing as npt

from vitscope.store.arrays import Index
from vitscope.store.errors import DamagedIndexError
from vitscope.store.files import expect_reading
from vitscope.store.seals import Checksums
from vitscope.store.shards import CRC_BYTES, Place, ShardGrid

Chunk: TypeAlias = npt.NDArray[Any]
"""Elements of an inner chunk, along the axes of its array; read-only."""

_FILES_AT_ONCE = 16


class ChunkCache:
    """The chunks used last, of all arrays of a generation; safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        """Hold at most `limit` bytes."""
        self._limit = limit
        self._held = 0
        self._chunks: OrderedDict[tuple[str, Place], Chunk] = OrderedDict()
        self._lock = Lock()

    def find(self, array: str, places: Sequence[Place]) -> dict[Place, Chunk]:
        """Those chunks of an array that are held."""
        found = {}
        with self._lock:
            for place in places:
                chunk = self._chunks.get((array, place))
                if chunk is not None:
                    self._chunks.move_to_end((array, place))
                    found[place] = chunk
        return found

    def keep(self, array: str, chunks: Mapping[Place, Chunk]) -> None:
        """Hold chunks of an array, and let go of those that were not used for longest."""
        with self._lock:
            for place, chunk in chunks.items():
                if (array, place) not in self._chunks:
                    self._chunks[array, place] = chunk
                    self._held += chunk.nbytes
            while self._held > self._limit:
                self._held -= self._chunks.popitem(last=False)[1].nbytes


class SealedArray:
    """One array of a published generation; safe to read from several threads."""

    def __init__(
        self, path: Path, grid: ShardGrid, sealed: Callable[[], Checksums], cache: ChunkCache
    ) -> None:
        """`sealed` gives the array's seals (shards, inner chunks + 1) when they are needed."""
        self._folder = f"{path}/c/"
        self._name = path.name
        self._grid = grid
        self._sealed = sealed
        self._cache = cache
        self._dtype = grid.dtype.newbyteorder("<")
        self._stored = tuple(grid.chunk[axis] for axis in grid.order)
        self._axes = tuple(np.argsort(grid.order).tolist())

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return self._grid.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self._grid.dtype

    def read(self, *index: Index) -> npt.NDArray[Any]:
        """The elements at `index`, as in NumPy's basic indexing with one integer array allowed.

        Raises `DamagedIndexError` where a chunk is missing or not the sealed one, IndexError for an
        index outside the array; integers count from the start.
        """
        grid = self._grid
        if sum(isinstance(part, np.ndarray) for part in index) > 1:
            raise IndexError("an index holds one array at most")
        given = [*index, *[slice(None)] * (len(grid.shape) - len(index))]
        axes = [_axis(*each) for each in zip(given, grid.shape, grid.chunk, strict=True)]
        values = np.empty([axis.length for axis in axes], self.dtype)
        if values.size:
            chunks = self._chunks(grid.places([axis.chunks for axis in axes]))
            for chunk, parts in zip(chunks, product(*(axis.parts for axis in axes)), strict=True):
                target, source = zip(*parts, strict=True)
                values[target] = chunk[source]
        return values[tuple(map(_left, given))]

    def _chunks(self, places: Sequence[Place]) -> Iterator[Chunk]:
        found = self._cache.find(self._folder, places)
        if len(found) < len(places):
            loaded = self._load([place for place in places if place not in found])
            self._cache.keep(self._folder, loaded)
            found |= loaded
        return (found[place] for place in places)

    def _load(self, places: Sequence[Place]) -> dict[Place, Chunk]:
        """Read chunks, some files at a time, which the disk may then read ahead side by side."""
        files: dict[int, list[Place]] = {}
        for place in places:
            files.setdefault(place[0], []).append(place)
        left = list(files.items())
        chunks: dict[Place, Chunk] = {}
        try:
            while left:
                self._load_files(left[:_FILES_AT_ONCE], chunks)
                del left[:_FILES_AT_ONCE]
        except OSError as error:
            raise self._damaged(f"cannot be read ({error.strerror})") from error
        return chunks

    def _load_files(
        self, files: Sequence[tuple[int, Sequence[Place]]], chunks: dict[Place, Chunk]
    ) -> None:
        sealed, step = self._sealed(), self._grid.step
        size = step - CRC_BYTES
        ahead = len(files) > 1 or len(files[0][1]) > 1
        opened: list[int] = []
        try:
            for shard, places in files:
                opened.append(os.open(self._folder + self._grid.file(shard), os.O_RDONLY))
                for _, _, rank in places if ahead else ():
                    expect_reading(opened[-1], rank * step, size)
            for file, (_, places) in zip(opened, files, strict=True):
                for place in places:
                    shard, inner, rank = place
                    data = os.pread(file, size, rank * step)
                    if len(data) != size or google_crc32c.value(data) != sealed[shard, inner]:
                        raise self._damaged("is not what was published")
                    stored = np.frombuffer(data, self._dtype).reshape(self._stored)
                    chunks[place] = stored.transpose(self._axes)
        finally:
            for file in opened:
                os.close(file)

    def _damaged(self, how: str) -> DamagedIndexError:
        return DamagedIndexError(
            f"Array {self._name} {how}; `vitscope verify --deep` names the damaged file."
        )


@dataclass(frozen=True, slots=True)
class _Axis:
    """What a read takes along one axis."""

    length: int
    """Elements."""
    chunks: Sequence[int]
    """Coordinates of the chunks they lie in."""
    parts: Sequence[tuple[Any, Any]]
    """For each of these, where its elements go and where in it they are."""


def _axis(part: Index, length: int, chunk: int) -> _Axis:
    if isinstance(part, slice):
        wanted = range(length)[part]
        return _of_range(wanted if wanted.step > 0 else wanted[::-1], chunk)
    outside = np.min(part, initial=0) < 0 or np.max(part, initial=0) >= length
    if outside:
        raise IndexError(f"{part} is not within an axis of {length}")
    if isinstance(part, np.ndarray):
        return _of_array(part, chunk)
    return _of_range(range(part, part + 1), chunk)


def _left(part: Index) -> int | slice:
    """What is left of an axis when it was read: an integer's goes, a backward slice's is turned."""
    if isinstance(part, slice):
        return slice(None, None, -1 if part.step and part.step < 0 else 1)
    return slice(None) if isinstance(part, np.ndarray) else 0


def _of_range(wanted: range, chunk: int) -> _Axis:
    chunks, parts = [], []
    place = 0
    while place < len(wanted):
        number, first = divmod(wanted[place], chunk)
        # As many as lie in this chunk.
        count = min(len(wanted) - place, -(-(chunk - first) // wanted.step))
        last = first + (count - 1) * wanted.step
        chunks.append(number)
        parts.append((slice(place, place + count), slice(first, last + 1, wanted.step)))
        place += count
    return _Axis(len(wanted), chunks, parts)


def _of_array(wanted: npt.NDArray[Any], chunk: int) -> _Axis:
    groups: dict[int, tuple[list[int], list[int]]] = {}
    for place, element in enumerate(wanted.tolist()):
        number, within = divmod(element, chunk)
        mine = groups.setdefault(number, ([], []))
        mine[0].append(place)
        mine[1].append(within)
    # Slices where they do: NumPy takes many times as long with an array in the index.
    parts = {
        number: [slice(each[0], each[0] + 1) if len(each) == 1 else each for each in mine]
        for number, mine in groups.items()
    }
    chunks = sorted(parts)
    return _Axis(len(wanted), chunks, [(parts[number][0], parts[number][1]) for number in chunks])
