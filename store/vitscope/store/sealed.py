"""Reading published arrays straight from their shard files, every chunk compared with its seal.

Where a chunk lies follows from its place in the array, and what it has to be from its seal: a read
needs neither a shard's index nor the checksum stored with the chunk, but the bytes themselves.
"""

from __future__ import annotations

import errno
import operator
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
from vitscope.store.errors import DamagedIndexError, NotReadError, StoreError
from vitscope.store.files import expect_reading
from vitscope.store.seals import Checksums
from vitscope.store.shards import CRC_BYTES, Place, ShardGrid

Chunk: TypeAlias = npt.NDArray[Any]
"""Elements of an inner chunk, along the axes of its array; read-only."""

_FILES_AT_ONCE = 16
_CHUNKS_AT_ONCE = 256


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
        self._size = grid.step - CRC_BYTES
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
        if len(index) > len(grid.shape) or sum(isinstance(p, np.ndarray) for p in index) > 1:
            raise IndexError("an index has one part an axis, and one array at most")
        given = [*index, *[slice(None)] * (len(grid.shape) - len(index))]
        axes = [_axis(*each) for each in zip(given, grid.shape, grid.chunk, strict=True)]
        values = np.empty([axis.length for axis in axes], self.dtype)
        if values.size:
            places = grid.places([axis.chunks for axis in axes])
            parts = dict(zip(places, product(*(axis.parts for axis in axes)), strict=True))
            for place, chunk in self._chunks(places):
                target, source = zip(*parts[place], strict=True)
                values[target] = chunk[source]
        return np.asarray(values[tuple(map(_left, given))])

    def _chunks(self, places: Sequence[Place]) -> Iterator[tuple[Place, Chunk]]:
        """The chunks at `places` in any order; few at a time that are not in the cache."""
        found = self._cache.find(self._folder, places)
        yield from found.items()
        if len(found) < len(places):
            for loaded in self._load([place for place in places if place not in found]):
                self._cache.keep(self._folder, loaded)
                yield from loaded.items()

    def _load(self, places: Sequence[Place]) -> Iterator[dict[Place, Chunk]]:
        """Read chunks, some files at a time, which the disk may then read ahead side by side."""
        files: dict[int, list[Place]] = {}
        for place in places:
            files.setdefault(place[0], []).append(place)
        some: list[tuple[int, list[Place]]] = []
        for file in files.items():
            some.append(file)
            if len(some) == _FILES_AT_ONCE or sum(len(of) for _, of in some) > _CHUNKS_AT_ONCE:
                yield self._load_files(some)
                some = []
        if some:
            yield self._load_files(some)

    def _load_files(self, files: Sequence[tuple[int, Sequence[Place]]]) -> dict[Place, Chunk]:
        ahead = len(files) > 1 or len(files[0][1]) > 1
        opened: list[int] = []
        chunks: dict[Place, Chunk] = {}
        try:
            for shard, places in files:
                opened.append(os.open(self._folder + self._grid.file(shard), os.O_RDONLY))
                for _, _, rank in places if ahead else ():
                    expect_reading(opened[-1], rank * self._grid.step, self._size)
            for file, (_, places) in zip(opened, files, strict=True):
                for place in places:
                    chunks[place] = self._read_chunk(file, place)
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            for file in opened:
                os.close(file)
        return chunks

    def _read_chunk(self, file: int, place: Place) -> Chunk:
        shard, inner, rank = place
        data = os.pread(file, self._size, rank * self._grid.step)
        if len(data) != self._size or google_crc32c.value(data) != self._sealed()[shard, inner]:
            raise self._damaged("is not what was published")
        return np.frombuffer(data, self._dtype).reshape(self._stored).transpose(self._axes)

    def _unreadable(self, error: OSError) -> StoreError:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return NotReadError(
                f"Array {self._name} cannot be read now ({error.strerror}); ask less at once, or "
                "raise the limit."
            )
        return self._damaged(f"cannot be read ({error.strerror})")

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
        along = range(length)[part]
        return _of_range(along if along.step > 0 else along[::-1], chunk)
    if isinstance(part, np.ndarray):
        if part.ndim != 1 or (part.size and part.dtype.kind not in "iu"):
            raise IndexError("an array in an index has one axis, of integers")
        wanted = [_inside(element, length) for element in part.tolist()]
        return _of_list(wanted, chunk)
    number = _inside(operator.index(part), length)
    return _of_range(range(number, number + 1), chunk)


def _inside(element: int, length: int) -> int:
    if not 0 <= element < length:
        raise IndexError(f"{element} is not within an axis of {length}")
    return element


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


def _of_list(wanted: Sequence[int], chunk: int) -> _Axis:
    groups: dict[int, tuple[list[int], list[int]]] = {}
    for place, element in enumerate(wanted):
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
