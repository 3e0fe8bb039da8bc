"""Refusing chunks that are sound in themselves but not the ones that were sealed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.store.errors import DamagedIndexError
from vitscope.store.seals import Checksums
from vitscope.store.shards import CRC_BYTES, ShardGrid

Index = int | slice | npt.NDArray[np.integer]
Places = npt.NDArray[np.int64]


class Guard:
    """Compares the checksums stored in shard files with the sealed ones, each chunk once.

    TensorStore checks that a chunk fits the checksum stored with it; together they check that the
    chunk is the one that was published. Safe to use from several threads: the worst that can happen
    is that a chunk is checked twice.
    """

    def __init__(self, path: Path, grid: ShardGrid, sealed: Callable[[], Checksums]) -> None:
        """Guard the array at `path`; `sealed` gives its seals when they are first needed."""
        self._folder = f"{path}/c/"
        self._name = path.name
        self._grid = grid
        self._sealed = sealed
        self._checked = np.zeros(grid.chunks, np.bool_)

    def check(self, index: tuple[Index, ...]) -> None:
        """Check the chunks that a read of `index` touches.

        Raises `DamagedIndexError` where one is missing or not the sealed one.
        """
        axes = zip(index, self._grid.chunk, self._grid.shape, strict=False)
        cells = tuple([_cells(*axis) for axis in axes])
        seen = self._checked[cells]
        if np.count_nonzero(seen) == seen.size:
            return
        if seen.size == 1:
            # The commonest read, one map, many times faster than by arrays.
            [*one] = map(_only, cells)
            one += [0] * (len(self._grid.shape) - len(one))
            self._check_one(one)
            self._checked[tuple(one)] = True
        else:
            many = self._unchecked(cells)
            # Another thread may have checked them in the meantime.
            if many[0].size:
                self._check_many(many)
            self._checked[many] = True

    def _unchecked(self, cells: tuple[Index, ...]) -> tuple[Places, ...]:
        """Coordinates of the chunks among `cells` that nobody has checked."""
        counts = self._grid.chunks[len(cells) :]
        axes = [*map(_coordinates, cells), *map(np.arange, counts)]
        found = np.nonzero(~self._checked[np.ix_(*axes)])
        return tuple(axis[places] for axis, places in zip(axes, found, strict=True))

    def _check_one(self, chunk: Sequence[int]) -> None:
        grid = self._grid
        shard, inner, rank, held = _places(chunk, grid)
        sealed = self._sealed()[shard, [inner, -1]].tobytes()
        path = [place // per for place, per in zip(chunk, grid.per_shard, strict=True)]
        end = held * grid.step + grid.index_bytes
        offset = (rank + 1) * grid.step - CRC_BYTES
        self._compare(path, [(end, sealed[CRC_BYTES:]), (offset, sealed[:CRC_BYTES])])

    def _check_many(self, chunks: tuple[Places, ...]) -> None:
        grid = self._grid
        sealed = self._sealed().view(f"V{CRC_BYTES}")
        shards, inner, rank, held = _places(chunks, grid)
        order = np.argsort(shards, kind="stable")
        shards, inner, rank, held = shards[order], inner[order], rank[order], held[order]
        wanted = sealed[shards, inner].tolist()
        offsets = ((rank + 1) * grid.step - CRC_BYTES).tolist()
        first = np.flatnonzero(np.append(True, shards[1:] != shards[:-1]))
        mine = shards[first]
        paths = np.transpose(np.unravel_index(mine, grid.shards)).tolist()
        ends = (held[first] * grid.step + grid.index_bytes).tolist()
        indexes = sealed[mine, -1].tolist()
        bounds = pairwise([*first.tolist(), len(shards)])
        for path, end, index, (start, stop) in zip(paths, ends, indexes, bounds, strict=True):
            here = zip(offsets[start:stop], wanted[start:stop], strict=True)
            self._compare(path, [(end, index), *here])

    def _compare(self, shard: Sequence[int], checksums: Sequence[tuple[int, bytes]]) -> None:
        if not _holds(self._folder + "/".join(map(str, shard)), checksums):
            raise DamagedIndexError(
                f"Array {self._name} is not what was published; `vitscope verify --deep` names "
                "the damaged file."
            )


def _cells(part: Index, chunk: int, length: int) -> Index:
    """The chunks that one axis of an index touches, as an index of the grid of chunks."""
    if not isinstance(part, slice):
        return part // chunk
    start, stop, step = part.indices(length)
    if step < 0:
        start, stop = stop + 1, start + 1
    return slice(start // chunk, -(-stop // chunk))


def _only(cells: Index) -> int:
    """The chunk, of an index of one."""
    if isinstance(cells, slice):
        return int(cells.start)
    return int(cells.item()) if isinstance(cells, np.ndarray) else int(cells)


def _coordinates(cells: Index) -> Places:
    if isinstance(cells, slice):
        return np.arange(cells.start, cells.stop)
    return np.unique(cells)


def _places(chunk: Sequence[Any], grid: ShardGrid) -> tuple[Any, Any, Any, Any]:
    """Number of a chunk's shard, the chunk's place in the shard's index, how many chunks lie before
    it in the file, and how many the file holds.

    `chunk` is one chunk's coordinates, or arrays of those of many.
    """
    shard = inner = rank = 0
    held = 1
    axes = zip(chunk, grid.per_shard, grid.chunks, grid.shards, strict=True)
    for place, per, chunks, shards in axes:
        mine, within = place // per, place % per
        extent = np.minimum(per, chunks - mine * per)
        shard = shard * shards + mine
        inner = inner * per + within
        rank = rank * extent + within
        held = held * extent
    return shard, inner, rank, held


def _holds(path: str, checksums: Sequence[tuple[int, bytes]]) -> bool:
    """Whether a file has these checksums at these offsets, and the first of them at its end."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        end, index = checksums[0]
        # One byte more than there should be: a longer file has its index elsewhere.
        return os.pread(file, CRC_BYTES + 1, end) == index and all(
            os.pread(file, CRC_BYTES, offset) == wanted for offset, wanted in checksums[1:]
        )
    except OSError:
        return False
    finally:
        os.close(file)
