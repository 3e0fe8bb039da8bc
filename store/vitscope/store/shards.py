"""How the chunks of an array lie in its shard files.

The inner chunks that hold elements of the array come in C order from the start of the file, without
gaps, each followed by its CRC32C; then the shard's index, 16 bytes for every inner chunk, and the
CRC32C of the index.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vitscope.store.errors import DamagedIndexError

Place: TypeAlias = tuple[int, int, int]
"""Where an inner chunk lies: number of its shard in C order, of its entry in the shard's index, and
how many chunks lie before it in the file."""

CRC_BYTES = 4
_ENTRY_BYTES = 16
_ABSENT = 2**64 - 1


@dataclass(frozen=True)
class ShardGrid:
    """Shards and inner chunks of one array."""

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    """Elements of one file along each axis."""
    chunk: tuple[int, ...]
    """Elements of one inner chunk along each axis."""
    dtype: np.dtype[Any]
    order: tuple[int, ...] = ()
    """Axes of an inner chunk as its bytes lie, slowest first; in their own order if not given."""

    def __post_init__(self) -> None:
        if not self.order:
            object.__setattr__(self, "order", tuple(range(len(self.shape))))

    @staticmethod
    def from_metadata(data: bytes) -> ShardGrid:
        """The grid of the array whose `zarr.json` is `data`; raises `DamagedIndexError`."""
        try:
            body = json.loads(data)
            (sharding,) = body["codecs"]
            inner = sharding["configuration"]
            codecs = {codec["name"]: codec.get("configuration", {}) for codec in inner["codecs"]}
            order = codecs.pop("transpose", {}).get("order", ())
            place = inner.get("index_location", "end")
            if (sharding["name"], [*codecs], place) == _LAYOUT:
                return ShardGrid(
                    tuple(body["shape"]),
                    tuple(body["chunk_grid"]["configuration"]["chunk_shape"]),
                    tuple(inner["chunk_shape"]),
                    np.dtype(body["data_type"]),
                    tuple(order),
                )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedIndexError("An array's zarr.json is not readable as one.") from error
        raise DamagedIndexError("An array's zarr.json names codecs that format 1 does not have.")

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        """Inner chunks along each axis of the array."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    @cached_property
    def shards(self) -> tuple[int, ...]:
        """Shards along each axis of the array."""
        return tuple(-(-n // s) for n, s in zip(self.shape, self.shard, strict=True))

    @cached_property
    def per_shard(self) -> tuple[int, ...]:
        """Inner chunks along each axis of a shard."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @cached_property
    def step(self) -> int:
        """Bytes from one inner chunk to the next, with its CRC32C."""
        return math.prod(self.chunk) * self.itemsize + CRC_BYTES

    @cached_property
    def index_bytes(self) -> int:
        """Bytes of a shard's index without its CRC32C."""
        return math.prod(self.per_shard) * _ENTRY_BYTES

    def file(self, shard: int) -> str:
        """Path, such as `0/3`, of the shard of this number in C order."""
        numbers = []
        for count in reversed(self.shards):
            shard, number = divmod(shard, count)
            numbers.append(str(number))
        return "/".join(reversed(numbers))

    def places(self, axes: Sequence[Sequence[int]]) -> list[Place]:
        """Where the chunks lie whose coordinates are the product of those along each axis."""
        found: list[Place] = [(0, 0, 0)]
        grid = zip(axes, self.per_shard, self.chunks, self.shards, strict=True)
        for coordinates, per, chunks, shards in grid:
            along = [
                (mine := number // per, number - mine * per, min(per, chunks - mine * per))
                for number in coordinates
            ]
            found = [
                (shard * shards + mine, inner * per + within, rank * extent + within)
                for shard, inner, rank in found
                for mine, within, extent in along
            ]
        return found

    def inside(self, shard: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Which inner chunks of a shard hold elements of the array, in C order: (n,)."""
        held = np.zeros(self.per_shard, np.bool_)
        axes = zip(self.chunks, shard, self.per_shard, strict=True)
        held[tuple(slice(chunks - number * per) for chunks, number, per in axes)] = True
        return held.ravel()

    def index(self, shard: tuple[int, ...]) -> bytes:
        """The index that a complete shard has."""
        held = self.inside(shard)
        table = np.full((len(held), 2), _ABSENT, "<u8")
        table[held, 0] = np.arange(np.count_nonzero(held)) * self.step
        table[held, 1] = self.step
        return table.tobytes()

    def names(self, *index: slice) -> list[str]:
        """Files, such as `c/0/3`, of the shards that a region touches; axes left out are whole."""
        given = [*index, *[slice(None)] * (len(self.shape) - len(index))]
        axes = []
        for part, length, shard in zip(given, self.shape, self.shard, strict=True):
            start, stop, _ = part.indices(length)
            axes.append(range(start // shard, -(-stop // shard)) if stop > start else range(0))
        return ["/".join(("c", *map(str, place))) for place in product(*axes)]


_LAYOUT = ("sharding_indexed", ["bytes", "crc32c"], "end")
