"""Seals: size, digest and chunk checksums of the files of an index, taken when they are written.

A chunk's CRC32C says that its bytes belong together, not that they belong here: a shard of another
array or of an older generation is as sound. The seals, which the manifest's digests protect, say
which checksum has to be where.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from vitscope.store.errors import DamagedIndexError, NotWrittenError
from vitscope.store.files import digest_bytes, digest_file
from vitscope.store.shards import CRC_BYTES, ShardGrid

Checksums = npt.NDArray[np.uint32]

_SHARD = re.compile(r"(?P<array>.+)/c(?P<place>(?:/\d+)+)")


@dataclass(frozen=True, slots=True)
class Seal:
    """What a file was when it was written."""

    bytes: int
    blake3: str
    crc32c: str
    """Eight hexadecimal digits for every inner chunk in C order, zeros for one outside the array,
    then those of the shard's index; empty for a file that is no shard."""

    @staticmethod
    def of(size: int, blake3: str, checksums: Checksums) -> Seal:
        """The seal of a shard with these checksums (n + 1,)."""
        return Seal(size, blake3, checksums.astype(">u4").tobytes().hex())


def seal_files(root: Path, names: Iterable[str]) -> dict[str, Seal]:
    """Seal files by their POSIX paths below `root`, reading each once.

    Raises `NotWrittenError` where one is missing, or is not a complete shard of its array.
    """
    grids: dict[str, ShardGrid] = {}
    seals: dict[str, Seal] = {}
    for name in names:
        try:
            if match := _SHARD.fullmatch(name):
                array = match["array"]
                if array not in grids:
                    metadata = (root / array / "zarr.json").read_bytes()
                    grids[array] = ShardGrid.from_metadata(metadata)
                place = tuple(int(number) for number in match["place"][1:].split("/"))
                seals[name] = _seal_shard(name, (root / name).read_bytes(), grids[array], place)
            else:
                size = (root / name).stat().st_size
                seals[name] = Seal(size, digest_file(root / name), "")
        except OSError as error:
            raise NotWrittenError(f"File {name} cannot be sealed: {error.strerror}.") from error
    return seals


def _seal_shard(name: str, data: bytes, grid: ShardGrid, place: tuple[int, ...]) -> Seal:
    within = len(place) == len(grid.shards) and all(map(int.__lt__, place, grid.shards))
    held = grid.inside(place) if within else np.zeros(0, np.bool_)
    end = np.count_nonzero(held) * grid.step
    if not within or data[end:-CRC_BYTES] != grid.index(place):
        raise NotWrittenError(f"File {name} is not a complete shard of its array.")
    chunks = np.frombuffer(data, np.uint8, end).reshape(-1, grid.step)
    checksums = np.zeros((len(held) + 1, CRC_BYTES), np.uint8)
    checksums[:-1][held] = chunks[:, -CRC_BYTES:]
    checksums[-1] = np.frombuffer(data[-CRC_BYTES:], np.uint8)
    return Seal(len(data), digest_bytes(data), checksums[:, ::-1].tobytes().hex())


def pack_seals(root: Path, seals: Mapping[str, Seal]) -> bytes:
    """The `.npz` file of a group: by array name, (shards, inner chunks + 1) uint32.

    `seals` are those of all files of the group's arrays. Raises `NotWrittenError` where an array
    lacks a shard.
    """
    tables = {}
    for name in sorted(seals):
        array, _, file = name.rpartition("/")
        if file == "zarr.json":
            tables[array.rpartition("/")[2]] = _table(root, array, seals)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **tables)
    return buffer.getvalue()


def _table(root: Path, array: str, seals: Mapping[str, Seal]) -> Checksums:
    grid = ShardGrid.from_metadata((root / array / "zarr.json").read_bytes())
    shards = [f"{array}/{shard}" for shard in grid.names()]
    table = np.zeros((len(shards), grid.index_bytes // 16 + 1), "<u4")
    for row, shard in zip(table, shards, strict=True):
        if shard not in seals:
            raise NotWrittenError(f"File {shard} was never written.")
        row[:] = np.frombuffer(bytes.fromhex(seals[shard].crc32c), ">u4")
    return table


def unpack_seals(data: bytes) -> dict[str, Checksums]:
    """What `pack_seals` packed; raises `DamagedIndexError` for anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as tables:
            return {name: tables[name].astype("<u4", copy=False) for name in tables.files}
    except (ValueError, OSError, KeyError, EOFError, BadZipFile) as error:
        raise DamagedIndexError("A seals file of the index is not readable as one.") from error
