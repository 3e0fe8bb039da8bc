"""Bringing the generation that is published in a bucket into an index directory.

Files are made in a folder that readers pass over and that a later call takes up again; it becomes
the generation once all of them are there, and the pointer moves last, as in any publication.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from blake3 import blake3

from vitscope.store import layout
from vitscope.store.errors import DamagedIndexError, NotAnIndexError, NotWrittenError, StoreError
from vitscope.store.files import (
    PARTIAL,
    begin_writing_back,
    digest_bytes,
    digest_file,
    sync_directory,
    tree_files,
    write_atomically,
)
from vitscope.store.generation import (
    Generation,
    current_name,
    generation_names,
    open_generation,
    parse_manifest,
)
from vitscope.store.lock import writing
from vitscope.store.manifest import FileRecord, Manifest
from vitscope.store.prune import expect_finished
from vitscope.store.remote import OtherGenerationError, Remote
from vitscope.store.transfer import Tally, aside, each

_MARKS = {layout.CURRENT, layout.GENERATIONS, layout.LOCK, layout.WORK}


@dataclass(slots=True)
class Pulled:
    """What `pull` did."""

    generation: str
    files: int
    bytes: int
    received: int = 0
    """Files whose bytes came over the line; the others were there."""
    received_bytes: int = 0
    linked: int = 0
    """Files that the generation shares with the one before."""


def pull(url: str, index: Path, *, replace: bool = False) -> Pulled:
    """Publish in `index` what is published at `url` (s3://BUCKET/PREFIX); makes `index`.

    Raises `OtherGenerationError` where `index` has published what is not there, unless it is to
    `replace` that; another `RemoteError` where the bucket cannot be used, `DamagedIndexError` for
    an object that is not what was published, `UnsupportedFormatError`, `NotAnIndexError` where
    nothing is published there or `index` is something else, `NotWrittenError` where the disk
    refuses, `BusyIndexError`, `NoLocksError` and `UnfinishedIndexError`.
    """
    remote = Remote(url)
    name, data = aside(remote.published())
    manifest = _manifest(remote, name, data)
    try:
        _expect_ours(index)
        index.mkdir(parents=True, exist_ok=True)
        with writing(index):
            expect_finished(index)
            return _pull(remote, index, name, manifest, data, replace=replace)
    except OSError as error:
        raise NotWrittenError(
            f"{index} cannot be written: {error.strerror} ({error.filename or index}); mend that "
            "and run the same command again."
        ) from error


def _manifest(remote: Remote, name: str, data: bytes) -> Manifest:
    path = f"{remote.url}/{layout.GENERATIONS}/{name}/{layout.MANIFEST}"
    try:
        return parse_manifest(data, name)
    except DamagedIndexError as error:
        raise DamagedIndexError(f"{path} is not what was published; push it again.") from error


def _expect_ours(index: Path) -> None:
    """Raise `NotAnIndexError` where `index` is a file, or a folder of other things."""
    inside = set(os.listdir(index)) if index.is_dir() else set()
    if (index.exists() and not index.is_dir()) or (inside and not inside & _MARKS):
        raise NotAnIndexError(f"{index} holds something else; give an index or a new folder.")


def _pull(
    remote: Remote, index: Path, name: str, manifest: Manifest, data: bytes, *, replace: bool
) -> Pulled:
    pulled = Pulled(name, len(manifest.files), sum(r.bytes for r in manifest.files.values()))
    before = current_name(index) if (index / layout.CURRENT).exists() else None
    if before == name:
        return pulled
    if before and not replace:
        aside(_expect_known(remote, index, before, name))
    generations = index / layout.GENERATIONS
    generations.mkdir(exist_ok=True)
    if name not in generation_names(generations):
        older = None
        # A damaged one only has nothing to share.
        with suppress(StoreError):
            older = open_generation(index) if before else None
        task = _Pull(remote, manifest, generations / layout.PULLING, older, pulled)
        aside(task.run(), task.tally, "pulled")
        write_atomically(task.folder / layout.MANIFEST, data)
        task.folder.rename(generations / name)
        sync_directory(generations)
    write_atomically(index / layout.CURRENT, f"{name}\n".encode())
    return pulled


async def _expect_known(remote: Remote, index: Path, before: str, name: str) -> None:
    """Raise `OtherGenerationError` where `before` would be lost, which may be `index`'s alone."""
    path = f"{layout.GENERATIONS}/{before}/{layout.MANIFEST}"
    data = (index / path).read_bytes()
    record = FileRecord(len(data), digest_bytes(data))
    if before > name or not await remote.holds(path, record):
        raise OtherGenerationError(
            f"{index} publishes {before}, which is not among the older generations of "
            f"{remote.url}; push it, or give --replace to put {name} in its place."
        )


@dataclass(slots=True)
class _Pull:
    remote: Remote
    manifest: Manifest
    folder: Path
    older: Generation | None
    """The published one, whose files may be the same."""
    pulled: Pulled
    tally: Tally = field(default_factory=Tally)

    async def run(self) -> None:
        """Make `folder` hold all files of the manifest, and nothing else."""
        files = self.manifest.files
        self.tally.total = self.pulled.bytes
        await asyncio.to_thread(self._prepare)
        await each(sorted(files, key=lambda name: -files[name].bytes), self._bring)
        folders = {path.parent for path in map(self.folder.joinpath, files)} | {self.folder}
        for folder in {up for path in folders for up in (path, *path.parents)}:
            if folder.is_relative_to(self.folder):
                await asyncio.to_thread(sync_directory, folder)

    def _prepare(self) -> None:
        """Make the folders, and take away what a cut-off call left that is of no use."""
        self.folder.mkdir(exist_ok=True)
        for path in tree_files(self.folder):
            if path.as_posix() not in self.manifest.files:
                (self.folder / path).unlink()
        for parent in {PurePosixPath(name).parent for name in self.manifest.files}:
            (self.folder / parent).mkdir(parents=True, exist_ok=True)

    async def _bring(self, name: str) -> None:
        record = self.manifest.files[name]
        if await asyncio.to_thread(_is, self.folder / name, record):
            self.tally.passed += record.bytes
        elif await asyncio.to_thread(self._linked, name, record):
            self.pulled.linked += 1
            self.tally.passed += record.bytes
        else:
            await self._receive(name, record)
            self.pulled.received += 1
            self.pulled.received_bytes += record.bytes

    def _linked(self, name: str, record: FileRecord) -> bool:
        if self.older is None or self.older.manifest.files.get(name) != record:
            return False
        source, target = self.older.path / name, self.folder / name
        if not _is(source, record):
            return False
        target.unlink(missing_ok=True)
        with suppress(OSError):
            os.link(source, target)
            return True
        return False

    async def _receive(self, name: str, record: FileRecord) -> None:
        target = self.folder / name
        path = f"{layout.GENERATIONS}/{self.pulled.generation}/{name}"
        digest = blake3()
        with target.with_name(f".{target.name}{PARTIAL}").open("wb") as file:
            async for block in self.remote.read(path, record.bytes):
                await asyncio.to_thread(_write, file, digest, block)
                self.tally.moved += len(block)
            if digest.hexdigest() != record.blake3:
                raise DamagedIndexError(
                    f"{self.remote.url}/{path} is not what was published; remove it and push the "
                    "index again."
                )
            await asyncio.to_thread(_keep, file, target)


def _is(path: Path, record: FileRecord) -> bool:
    """Whether a file is there, and what `record` says."""
    if not path.is_file() or path.stat().st_size != record.bytes:
        return False
    return digest_file(path) == record.blake3


def _write(file: BinaryIO, digest: blake3, block: memoryview) -> None:
    digest.update(block)
    start = file.tell()
    file.write(block)
    begin_writing_back(file.fileno(), start, len(block))


def _keep(file: BinaryIO, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    Path(file.name).replace(path)
