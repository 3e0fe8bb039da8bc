"""Durable file operations: what is renamed into place is whole and on the disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PARTIAL = ".partial"
"""How the names of files end that were being written when a process died."""

_BLOCK = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes in lower-case hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
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
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def tree_files(root: Path) -> list[Path]:
    """All files below `root`, as paths relative to it, in a fixed order."""
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.as_posix())
