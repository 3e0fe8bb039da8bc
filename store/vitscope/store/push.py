"""Putting the published generation of an index into a bucket.

All files go first, then the manifest, then the pointer: readers see the old generation or the new
one, and what was cut off at any point is taken up again by the same call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from vitscope.store import layout
from vitscope.store.errors import DamagedIndexError, StoreError
from vitscope.store.files import digest_bytes
from vitscope.store.generation import Generation, generation_names, open_generation, parse_manifest
from vitscope.store.manifest import FileRecord
from vitscope.store.remote import PART, OtherGenerationError, Pointer, Remote
from vitscope.store.transfer import Tally, aside, each


@dataclass(slots=True)
class Pushed:
    """What `push` did."""

    generation: str
    files: int
    bytes: int
    sent: int = 0
    """Files whose bytes went over the line; the others were there."""
    sent_bytes: int = 0
    copied: int = 0
    """Files that were copied over there from an older generation."""


def push(index: Path, url: str, *, replace: bool = False) -> Pushed:
    """Publish the generation that is published in `index` at `url` (s3://BUCKET/PREFIX) too.

    Raises `OtherGenerationError` where another is published there that `index` has not among its
    older ones, unless it is to `replace` that, and always where another came meanwhile;
    another `RemoteError` where the bucket cannot be used, `DamagedIndexError` for a file that is
    not what was published, and what `open_generation` raises.
    """
    remote = Remote(url)
    generation = open_generation(index)
    tally = Tally()
    task = _Push(index, generation, remote, tally)
    return aside(task.run(replace=replace), tally, "pushed")


@dataclass(slots=True)
class _Push:
    index: Path
    generation: Generation
    """Nobody prunes it as long as it is open."""
    remote: Remote
    tally: Tally
    there: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the objects of the generation."""
    older: Generation | None = None
    """The one that was published there, if `index` has it."""
    pushed: Pushed = field(init=False)

    async def run(self, *, replace: bool) -> Pushed:
        files = self.generation.manifest.files
        total = sum(record.bytes for record in files.values())
        self.pushed = Pushed(self.generation.name, len(files), total)
        before = await self.remote.pointer()
        self._compare(before, replace=replace)
        self.there = await self.remote.sizes(f"{layout.GENERATIONS}/{self.generation.name}")
        self.tally.total = total
        # The largest first, so that none is left over at the end.
        await each(sorted(files, key=lambda name: -files[name].bytes), self._bring)
        await self._bring_manifest()
        if before is None or before.generation != self.generation.name:
            await self.remote.point(self.generation.name, before)
        return self.pushed

    def _compare(self, before: Pointer | None, *, replace: bool) -> None:
        """Raise `OtherGenerationError` where something would be lost that may be another's."""
        if before is None or before.generation == self.generation.name:
            return
        folder = self.index / layout.GENERATIONS
        if (
            before.generation in generation_names(folder)
            and before.generation < self.generation.name
        ):
            # Damaged, it only cannot tell what is there.
            with suppress(StoreError):
                self.older = Generation(folder / before.generation)
        elif not replace:
            raise OtherGenerationError(
                f"{self.remote.url} publishes {before.generation}, which is not among the older "
                f"generations of {self.index}; pull it, or give --replace to put "
                f"{self.generation.name} in its place."
            )

    async def _bring(self, name: str) -> None:
        record = self.generation.manifest.files[name]
        path = self._path(name)
        if self.there.get(path) == record.bytes and await self.remote.holds(path, record):
            self.tally.passed += record.bytes
        elif await self._copied(name, record):
            self.pushed.copied += 1
            self.tally.passed += record.bytes
        else:
            await self._send(name, record)
            self.pushed.sent += 1
            self.pushed.sent_bytes += record.bytes

    async def _bring_manifest(self) -> None:
        path = self._path(layout.MANIFEST)
        try:
            data = await asyncio.to_thread((self.generation.path / layout.MANIFEST).read_bytes)
        except OSError as error:
            raise _damaged(layout.MANIFEST, error) from error
        parse_manifest(data, self.generation.name)
        record = FileRecord(len(data), digest_bytes(data))
        if not await self.remote.holds(path, record):
            await self.remote.send(path, data, record)

    async def _copied(self, name: str, record: FileRecord) -> bool:
        if self.older is None or self.older.manifest.files.get(name) != record:
            return False
        source = f"{layout.GENERATIONS}/{self.older.name}/{name}"
        return await self.remote.copy(source, self._path(name), record)

    async def _send(self, name: str, record: FileRecord) -> None:
        if record.bytes > PART:
            await self.remote.send(self._path(name), self._blocks(name, record), record)
            return
        data = await asyncio.to_thread(self._small, name)
        if digest_bytes(data) != record.blake3:
            raise _damaged(name)
        await self.remote.send(self._path(name), data, record)
        self.tally.moved += len(data)

    async def _blocks(self, name: str, record: FileRecord) -> AsyncIterator[bytes]:
        """A file's blocks; raises at their end where they were not its bytes, so that none stay."""
        digest = blake3()
        try:
            with (self.generation.path / name).open("rb", buffering=0) as file:
                while block := await asyncio.to_thread(_read, file, digest):
                    self.tally.moved += len(block)
                    yield block
        except OSError as error:
            raise _damaged(name, error) from error
        if digest.hexdigest() != record.blake3:
            raise _damaged(name)

    def _small(self, name: str) -> bytes:
        try:
            with (self.generation.path / name).open("rb") as file:
                return file.read(PART)
        except OSError as error:
            raise _damaged(name, error) from error

    def _path(self, name: str) -> str:
        return f"{layout.GENERATIONS}/{self.generation.name}/{name}"


def _read(file: BinaryIO, digest: blake3) -> bytes:
    block = file.read(PART)
    digest.update(block)
    return block


def _damaged(name: str, error: OSError | None = None) -> DamagedIndexError:
    how = f"cannot be read ({error.strerror})" if error else "is not what was published"
    return DamagedIndexError(f"File {name} of the index {how}; restore it from a copy.")
