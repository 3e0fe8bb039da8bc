"""The files of a published generation: whole ones checked by digest, arrays chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import Lock

from vitscope.store import layout
from vitscope.store.errors import DamagedIndexError
from vitscope.store.files import digest_bytes
from vitscope.store.manifest import FileRecord
from vitscope.store.sealed import ChunkCache, SealedArray
from vitscope.store.seals import Checksums, unpack_seals
from vitscope.store.shards import ShardGrid

_CACHE_BYTES = 256 << 20


class PublishedFiles:
    """What a manifest lists; nothing that it gives refers to the generation, which can then go."""

    def __init__(self, path: Path, records: Mapping[str, FileRecord]) -> None:
        self._path = path
        self._records = records
        self._chunks = ChunkCache(_CACHE_BYTES)
        self._seals: dict[str, Mapping[str, Checksums]] = {}
        self._lock = Lock()

    def read(self, name: str) -> bytes:
        """The bytes of a file that were published; raises `DamagedIndexError` for others."""
        # FAISS has no checksum and reads damaged files: it only sees bytes that were verified.
        try:
            data = (self._path / name).read_bytes()
        except OSError as error:
            raise DamagedIndexError(
                f"File {name} of the index cannot be read ({error.strerror}); restore it from a "
                "copy."
            ) from error
        record = self._records.get(name)
        if record is None or digest_bytes(data) != record.blake3:
            raise DamagedIndexError(
                f"File {name} of the index is not what was published; restore it from a copy."
            )
        return data

    def check_sizes(self) -> None:
        """Raise `DamagedIndexError` for a file that is missing or of another length."""
        for name, record in self._records.items():
            path = self._path / name
            try:
                size = path.stat().st_size
            except OSError as error:
                how = f"cannot be read ({error.strerror})"
            else:
                how = f"has {size} bytes instead of {record.bytes}"
                if size == record.bytes:
                    continue
            raise DamagedIndexError(f"File {name} of the index {how}; restore it from a copy.")

    def seals(self, group: str) -> Mapping[str, Checksums]:
        """The seals of a group's arrays, by name."""
        # Large, so that threads that ask at once wait for one to load them.
        with self._lock:
            if group not in self._seals:
                self._seals[group] = unpack_seals(self.read(layout.seals_file(group)))
            return self._seals[group]

    def grid(self, array: str) -> ShardGrid:
        """How the array at a path below the generation's folder is stored."""
        return ShardGrid.from_metadata(self.read(f"{array}/zarr.json"))

    def open(self, path: Path) -> SealedArray:
        """The array in the folder `path`."""
        name = path.relative_to(self._path).as_posix()
        # Checksums of chunks say nothing of a shape or type that has changed.
        grid = self.grid(name)
        sealed = partial(self._table, layout.group_of(f"{name}/zarr.json"), path.name)
        return SealedArray(path, grid, sealed, self._chunks)

    def _table(self, group: str, array: str) -> Checksums:
        return self.seals(group)[array]
