"""Zarr v3 arrays through TensorStore: sharded, uncompressed, CRC32C on every inner chunk.

Zarr's own default puts a checksum on a shard's index only, so a flipped bit in the data would
read as a wrong number; here every inner chunk carries one. Holes read as an error, not as zeros.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from vitscope.store.encode import ShardWriter
from vitscope.store.errors import DamagedIndexError, NotWrittenError
from vitscope.store.files import sync_directory, write_atomically
from vitscope.store.shards import ShardGrid

_SHARD_BYTES = 64 << 20
_LINE = 1 << 16
# An index in the making is read and written once: what a cache kept would only fill memory.
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 0}})

Index: TypeAlias = int | np.integer[Any] | slice | npt.NDArray[Any]
"""What is taken along one axis."""


class Readable(Protocol):
    """An array to read from."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""

    def read(self, *index: Index) -> npt.NDArray[Any]:
        """The elements at `index`, as in NumPy's basic indexing with one integer array allowed."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and storage of one array."""

    dtype: str
    """NumPy's name of the element type."""
    shape: tuple[int, ...]
    dimensions: tuple[str, ...]
    """A name per axis, for xarray."""
    shard: tuple[int, ...]
    """Elements of one file; a multiple of `chunk` in every axis."""
    chunk: tuple[int, ...]
    """Elements read and checked at once."""
    order: tuple[int, ...] = ()
    """Axes of an inner chunk as its bytes lie, slowest first; in their own order where empty."""


def line_spec(dtype: str, length: int, dimension: str) -> ArraySpec:
    """A one-dimensional array of `length` elements."""
    chunk = max(1, min(length, _LINE))
    shard = chunk * max(1, min(64, math.ceil(length / chunk)))
    return ArraySpec(dtype, (length,), (dimension,), (shard,), (chunk,))


def leading_spec(
    dtype: str, shape: tuple[int, ...], dimensions: tuple[str, ...], rows_per_chunk: int
) -> ArraySpec:
    """An array read `rows_per_chunk` entries of its first axis at a time, all others whole."""
    entry = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    chunks = max(1, min(_SHARD_BYTES // (entry * rows_per_chunk), -(-shape[0] // rows_per_chunk)))
    rest = shape[1:]
    return ArraySpec(
        dtype, shape, dimensions, (chunks * rows_per_chunk, *rest), (rows_per_chunk, *rest)
    )


def shard_names(spec: ArraySpec, *index: slice) -> list[str]:
    """Files, such as `c/0/3`, of the shards that a region touches; axes left out are whole."""
    return _grid(spec).names(*index)


def _grid(spec: ArraySpec) -> ShardGrid:
    return ShardGrid(spec.shape, spec.shard, spec.chunk, np.dtype(spec.dtype), spec.order)


class Array:
    """One array of an index in the making; damage raises `DamagedIndexError`."""

    def __init__(
        self, handle: ts.TensorStore, name: str, shards: ShardWriter | None = None
    ) -> None:
        self._handle = handle
        self._name = name
        self._shards = shards

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return tuple(self._handle.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return np.dtype(self._handle.dtype.numpy_dtype)

    def read(self, *index: Index) -> npt.NDArray[Any]:
        """The elements at `index`, as in NumPy's basic indexing with one integer array allowed."""
        view = self._handle[index] if index else self._handle
        try:
            return np.asarray(view.read().result())
        except (ValueError, OSError) as error:
            raise DamagedIndexError(
                f"Array {self._name} cannot be read back as it was written; `vitscope verify "
                "--deep` names the damaged file."
            ) from error

    def write(self, values: npt.NDArray[Any], *index: Index) -> None:
        """Store `values` at `index`; returns once they are on the disk."""
        region = self._shards.region(values, index) if self._shards else None
        try:
            if self._shards and region:
                self._shards.write(values, region)
                return
            view = self._handle[index] if index else self._handle
            view.write(values).result()
        except (ValueError, OSError) as error:
            raise _not_written(self._name, error) from error


def write_group(path: Path) -> None:
    """Create the folder `path` as a Zarr group."""
    path.mkdir(parents=True, exist_ok=True)
    body = {"attributes": {}, "node_type": "group", "zarr_format": 3}
    write_atomically(path / "zarr.json", json.dumps(body, indent=1).encode() + b"\n")


def create_array(path: Path, spec: ArraySpec) -> Array:
    """Create the array at `path`, or open it for writing where it is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = ts.open(
            {**_driver(path), "metadata": _metadata(spec), "store_data_equal_to_fill_value": True},
            open=True,
            create=True,
            context=_CONTEXT,
        ).result()
    except (ValueError, OSError) as error:
        raise _not_written(path.name, error) from error
    sync_directory(path.parent)
    return Array(handle, path.name, ShardWriter(path, _grid(spec)))


def _not_written(name: str, error: Exception) -> NotWrittenError:
    number = error.errno if isinstance(error, OSError) else None
    # TensorStore gives the number in its text only.
    if number is None and (told := re.search(r"os_error_code='(\d+)'", str(error))):
        number = int(told[1])
    reason = "the disk refuses it" + (f": {os.strerror(number)}" if number else "")
    if number == errno.ENOSPC:
        reason = "the disk is full"
    return NotWrittenError(f"Array {name} cannot be written; {reason}.")


def write_array(path: Path, values: npt.NDArray[Any], spec: ArraySpec) -> None:
    """Create the array at `path` and store all of `values`."""
    array = create_array(path, spec)
    if values.size:
        array.write(values)


def open_array(path: Path) -> Array:
    """Open the array at `path` for reading; raises `DamagedIndexError` where there is none."""
    try:
        handle = ts.open(
            {**_driver(path), "fill_missing_data_reads": False},
            open=True,
            read=True,
            context=_CONTEXT,
            recheck_cached_data="open",
        ).result()
    except (ValueError, OSError) as error:
        raise DamagedIndexError(
            f"Array {path.name} of the index is missing or not readable as Zarr."
        ) from error
    return Array(handle, path.name)


def _driver(path: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}


def _metadata(spec: ArraySpec) -> dict[str, Any]:
    floating = np.dtype(spec.dtype).kind == "f"
    chunk_codecs = [_little_endian(spec.dtype), {"name": "crc32c"}]
    if spec.order:
        order = {"order": list(spec.order)}
        chunk_codecs.insert(0, {"name": "transpose", "configuration": order})
    sharding = {
        "chunk_shape": list(spec.chunk),
        "codecs": chunk_codecs,
        "index_codecs": [_little_endian("uint64"), {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "shape": list(spec.shape),
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(spec.shard)}},
        "fill_value": "NaN" if floating else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": list(spec.dimensions),
    }


def _little_endian(dtype: str) -> dict[str, Any]:
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}
