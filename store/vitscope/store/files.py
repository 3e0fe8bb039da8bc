"""Durable file operations: what is renamed into place is whole and on the disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

PARTIAL = ".partial"
"""How the names of files end that were being written when a process died."""

_BLOCK = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_bytes(data: bytes) -> str:
    """BLAKE3 of `data` in lower-case hexadecimal."""
    return blake3(data).hexdigest()


def digest_file(path: Path) -> str:
    """BLAKE3 of a file's bytes in lower-case hexadecimal, read in blocks."""
    digest = blake3()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Make renames and creations inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that `path` either keeps its old bytes or has all the new ones."""
    with streaming_atomically(path) as file:
        file.write(data)


@contextmanager
def streaming_atomically(path: Path) -> Iterator[BinaryIO]:
    """A new file to write; `path` gets all of its bytes where the block ends well, else none."""
    with replacing(path) as file:
        yield file
    sync_directory(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """As `streaming_atomically`, but that `path` is there for good only with its folder synced."""
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def expect_reading(file: int, start: int, size: int) -> None:
    """Tell the system that part of an open file will be read soon; it may fetch it meanwhile."""
    # No more than advice: some systems do not take it.
    with suppress(OSError, AttributeError):
        os.posix_fadvise(file, start, size, os.POSIX_FADV_WILLNEED)


def begin_writing_back(file: int, start: int, size: int) -> None:
    """Let the disk begin on part of an open file that was just written; does not wait for it."""
    # Linux starts to write what is dirty there, and keeps it until that is done.
    with suppress(OSError, AttributeError):
        os.posix_fadvise(file, start, size, os.POSIX_FADV_DONTNEED)


def make_folders(path: Path) -> set[Path]:
    """Make the folder `path` with those above it; returns the folders to sync for that."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    return {folder.parent for folder in missing}


def tree_files(root: Path) -> list[Path]:
    """All files below `root`, as paths relative to it, in a fixed order."""
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.as_posix())
