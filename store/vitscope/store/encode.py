"""Whole shards written without TensorStore: the same bytes, for a fraction of the processor's time.

TensorStore's codec handles inner chunks one by one, which for dense activations are thousands.
Here one strided copy lays out a slab of them, small enough for the processor's cache, with the
slots of their checksums between them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from vitscope.store.files import begin_writing_back, make_folders, replacing, sync_directory
from vitscope.store.shards import CRC_BYTES, ShardGrid

_SLAB_BYTES = 2 << 20

Region = tuple[slice, ...]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """Writes regions of one array that are made of whole shards."""

    path: Path
    """The array's folder."""
    grid: ShardGrid

    def region(self, values: object, index: Sequence[object]) -> Region | None:
        """The elements at `index`, where `write` can store `values` there; else None."""
        grid = self.grid
        if not isinstance(values, np.ndarray) or values.dtype != self.grid.dtype or not _able():
            return None
        given = [*index, *[slice(None)] * (len(grid.shape) - len(index))]
        if not len(given) == len(grid.shape) == values.ndim:
            return None
        region = []
        for part, length, shard, count in zip(
            given, grid.shape, grid.shard, values.shape, strict=True
        ):
            taken = _whole_shards(part, length, shard)
            if taken is None or taken.stop - taken.start != count:
                return None
            region.append(taken)
        return tuple(region)

    def write(self, values: npt.NDArray[Any], region: Region) -> None:
        """Store `values` in a region of whole shards; returns once they are on the disk."""
        folders: set[Path] = set()
        starts = [part.start for part in region]
        axes = zip(region, self.grid.shard, strict=True)
        for place in product(*(range(p.start // s, -(-p.stop // s)) for p, s in axes)):
            low = [n * s - at for n, s, at in zip(place, self.grid.shard, starts, strict=True)]
            mine = (slice(a, a + s) for a, s in zip(low, self.grid.shard, strict=True))
            file = self.path.joinpath("c", *map(str, place))
            folders |= {file.parent, *make_folders(file.parent)}
            with replacing(file) as stream:
                for part in self.encode(values[tuple(mine)], place):
                    start = stream.tell()
                    stream.write(part.data)
                    # The disk begins with it now and not when the file is complete.
                    begin_writing_back(stream.fileno(), start, part.nbytes)
        for folder in folders:
            sync_directory(folder)

    def encode(self, values: npt.NDArray[Any], place: tuple[int, ...]) -> Iterator[Bytes]:
        """The bytes of the shard at `place`, in parts; each is only valid until the next.

        `values` are all of the array's elements in it.
        """
        grid, rows = self.grid, self.grid.chunk[0]
        bits = values.view(f"=u{grid.itemsize}")
        across = math.prod(
            -(-n // c) for n, c in zip(values.shape[1:], grid.chunk[1:], strict=True)
        )
        high = max(1, min(_SLAB_BYTES // (across * grid.step), -(-len(values) // rows)))
        buffer = np.empty(high * across * grid.step, np.uint8)
        for start in range(0, len(values), high * rows):
            slab = bits[start : start + high * rows]
            chunks = buffer[: -(-len(slab) // rows) * across * grid.step]
            self._lay_out(slab, chunks)
            _add_checksums(chunks.reshape(-1, grid.step))
            yield chunks
        index = grid.index(place)
        yield np.frombuffer(index + google_crc32c.value(index).to_bytes(CRC_BYTES, "little"), "u1")

    def _lay_out(self, bits: npt.NDArray[Any], data: Bytes) -> None:
        """Copy elements to the inner chunks in `data`, and pad those at the array's edge."""
        chunk, order, ndim = self.grid.chunk, self.grid.order, bits.ndim
        held = tuple(-(-n // c) for n, c in zip(bits.shape, chunk, strict=True))
        stored = tuple(chunk[axis] for axis in order)
        steps = *_strides(held, self.grid.step), *_strides(stored, self.grid.itemsize)
        chunks = np.ndarray((*held, *stored), bits.dtype, data, 0, steps)
        for axis, (n, c) in enumerate(zip(bits.shape, chunk, strict=True)):
            if n % c:
                last = np.moveaxis(chunks, (axis, ndim + order.index(axis)), (0, 1))[-1]
                last[n % c :] = _fill_bits(self.grid.dtype)
        for parts in product(*map(_parts, bits.shape, chunk)):
            taken, numbers, within, shapes = zip(*parts, strict=True)
            split = bits[taken].reshape([length for shape in shapes for length in shape])
            source = split.transpose(*range(0, 2 * ndim, 2), *(2 * axis + 1 for axis in order))
            _copy(source, chunks[(*numbers, *(within[axis] for axis in order))])


def _copy(source: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
    """Copy bits; the last axis of `target` has no gaps."""
    if source.strides[-1] == source.itemsize:
        # A run of elements as one: NumPy copies these twice as fast.
        run = np.dtype(("V", source.shape[-1] * source.itemsize))
        source, target = source.view(run), target.view(run)
    target[...] = source


def _able() -> bool:
    """Whether checksums are fast here, and elements lie in memory as they do on the disk."""
    return google_crc32c.implementation == "c" and sys.byteorder == "little"


def _whole_shards(part: object, length: int, shard: int) -> slice | None:
    """The slice with its ends, where it takes whole shards of an axis; else None."""
    if not isinstance(part, slice) or part.step not in (None, 1):
        return None
    start = 0 if part.start is None else part.start
    stop = length if part.stop is None else part.stop
    if not 0 <= start < stop <= length or start % shard or (stop % shard and stop != length):
        return None
    return slice(start, stop)


def _parts(length: int, chunk: int) -> Iterator[tuple[slice, slice, slice, tuple[int, int]]]:
    """An axis in whole chunks and the rest: its elements, their chunks, their place therein."""
    whole, rest = divmod(length, chunk)
    if whole:
        yield slice(whole * chunk), slice(whole), slice(chunk), (whole, chunk)
    if rest:
        yield slice(whole * chunk, length), slice(whole, whole + 1), slice(rest), (1, rest)


def _strides(shape: tuple[int, ...], step: int) -> tuple[int, ...]:
    """Bytes from one entry to the next along each axis, in C order."""
    return tuple(math.prod(shape[axis + 1 :]) * step for axis in range(len(shape)))


def _fill_bits(dtype: np.dtype[Any]) -> int:
    """The fill value's bits: those of the quiet NaN, or 0."""
    fill = np.array(np.nan if dtype.kind == "f" else 0, dtype)
    return int(fill.view(f"=u{dtype.itemsize}"))


def _add_checksums(chunks: Bytes) -> None:
    """Write the CRC32C of each inner chunk (n, step) after it."""
    values = [google_crc32c.value(chunk) for chunk in chunks[:, :-CRC_BYTES]]
    chunks[:, -CRC_BYTES:] = np.array(values, "<u4").view(np.uint8).reshape(-1, CRC_BYTES)
