"""Checking that a published index still has the bytes that were published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitscope.store import layout
from vitscope.store.files import sha256_file, tree_files
from vitscope.store.generation import open_generation
from vitscope.store.manifest import FileRecord


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

    Raises what `open_generation` raises where the index cannot be opened at all.
    """
    generation = open_generation(index)
    records = generation.manifest.files
    problems = [
        problem
        for name, record in sorted(records.items())
        if (problem := _check(generation.path / name, name, record, deep=deep))
    ]
    present = {path.as_posix() for path in tree_files(generation.path)}
    foreign = sorted(present - set(records) - {layout.MANIFEST})
    problems += [f"{name} does not belong to the index." for name in foreign]
    size = sum(record.bytes for record in records.values())
    return Verification(generation.name, len(records), size, tuple(problems))


def _check(path: Path, name: str, record: FileRecord, *, deep: bool) -> str:
    if not path.is_file():
        return f"{name} is missing."
    size = path.stat().st_size
    if size != record.bytes:
        return f"{name} has {size:,} bytes instead of {record.bytes:,}."
    if (deep or name.endswith("zarr.json")) and sha256_file(path) != record.sha256:
        return f"{name} has other bytes than were published."
    return ""
