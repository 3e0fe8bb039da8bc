"""Checking that a published index still has the bytes that were published."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitscope.store import layout
from vitscope.store.files import digest_file
from vitscope.store.generation import open_generation
from vitscope.store.manifest import FileRecord
from vitscope.store.text import counted

_THREADS = 4


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found."""

    generation: str
    files: int
    bytes: int
    problems: tuple[str, ...]
    """One sentence per damaged, missing or foreign file; empty where all is well."""


def verify(index: Path, *, deep: bool = False) -> Verification:
    """Check presence and sizes of all files and the digests of metadata; with `deep`, every byte.

    Raises what `open_generation` raises where the index cannot be opened at all; where a damaged
    file is the reason, the error names it.
    """
    generation = open_generation(index)
    records = generation.manifest.files

    def check(name: str) -> str:
        return _check(generation.path / name, name, records[name], deep=deep)

    # Hashing releases the interpreter, and a disk has more than one request in hand.
    with ThreadPoolExecutor(_THREADS) as pool:
        problems = [problem for problem in pool.map(check, sorted(records)) if problem]
    foreign = sorted(_entries(generation.path) - set(records) - {layout.MANIFEST})
    problems += [f"{name} does not belong to the index." for name in foreign]
    size = sum(record.bytes for record in records.values())
    return Verification(generation.name, len(records), size, tuple(problems))


def _entries(root: Path) -> set[str]:
    """Everything below `root` but folders, links to nowhere included."""
    paths = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(root).as_posix() for path in paths}


def _check(path: Path, name: str, record: FileRecord, *, deep: bool) -> str:
    try:
        if not path.is_file():
            return f"{name} is missing."
        size = path.stat().st_size
        if size != record.bytes:
            return f"{name} has {counted(size, 'byte')} instead of {record.bytes:,}."
        if not (deep or name.endswith("zarr.json") or name.startswith(f"{layout.SEALS}/")):
            return ""
        digest = digest_file(path)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})."
    if digest != record.blake3:
        return f"{name} has other bytes than were published."
    return ""
