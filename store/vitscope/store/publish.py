"""Turning a finished working folder into the published generation."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vitscope.store import layout
from vitscope.store.errors import NotWrittenError, StoreError
from vitscope.store.files import PARTIAL, digest_bytes, sync_directory, tree_files, write_atomically
from vitscope.store.generation import generation_name, generation_names
from vitscope.store.manifest import FileRecord, Manifest
from vitscope.store.seals import Seal, pack_seals, seal_files


def publish(
    index: Path, staged: Path, manifest: Manifest, seals: Mapping[str, Seal] | None = None
) -> str:
    """Publish the folder `staged` as the next generation of `index`; gives its name.

    The manifest gets the digests of all files of `staged`; those in `seals`, by path below it, were
    sealed by their writer and are not read again. The pointer is renamed into place last, so that
    readers see the old generation or the whole new one. Raises `NotWrittenError` where an array is
    not complete or a file is not as long as its seal says.
    """
    for path in staged.rglob("*"):
        # What a write left behind that was cut off: ours, and TensorStore's.
        if path.name.endswith((PARTIAL, "__lock")):
            path.unlink()
    files = _write_seals(staged, seals or {})
    data = replace(manifest, files=files).to_json()
    write_atomically(staged / layout.MANIFEST, data)
    generations = index / layout.GENERATIONS
    generations.mkdir(exist_ok=True)
    name = generation_name(_next_number(generations), data)
    staged.rename(generations / name)
    sync_directory(generations)
    write_atomically(index / layout.CURRENT, f"{name}\n".encode())
    return name


def _write_seals(staged: Path, given: Mapping[str, Seal]) -> dict[str, FileRecord]:
    """Write the seals of every group; gives the records of all files."""
    shutil.rmtree(staged / layout.SEALS, ignore_errors=True)
    (staged / layout.SEALS).mkdir()
    groups: dict[str, list[str]] = defaultdict(list)
    for path in tree_files(staged):
        if path.as_posix() != layout.MANIFEST:
            groups[layout.group_of(path.as_posix())].append(path.as_posix())
    records: dict[str, FileRecord] = {}
    # One group at a time: the checksums of all chunks of a large index would fill the memory.
    for group, names in groups.items():
        seals = _seal(staged, names, given)
        records |= {name: FileRecord(seal.bytes, seal.blake3) for name, seal in seals.items()}
        if group:
            name, data = layout.seals_file(group), pack_seals(staged, seals)
            write_atomically(staged / name, data)
            records[name] = FileRecord(len(data), digest_bytes(data))
    return records


def _seal(staged: Path, names: Sequence[str], given: Mapping[str, Seal]) -> dict[str, Seal]:
    seals = {name: given[name] for name in names if name in given}
    for name, seal in seals.items():
        if (staged / name).stat().st_size != seal.bytes:
            raise NotWrittenError(f"File {name} is not as long as when it was written.")
    return seals | seal_files(staged, [name for name in names if name not in seals])


def complete_publication(
    index: Path, staged: Path, is_mine: Callable[[Manifest], bool]
) -> str | None:
    """Finish a publication that was cut off after `staged` became a generation; gives its name.

    `is_mine` tells that generation by its manifest. None where there is nothing to finish.
    """
    name = made_generation(index, staged, is_mine)
    if name:
        write_atomically(index / layout.CURRENT, f"{name}\n".encode())
    return name


def made_generation(index: Path, staged: Path, is_mine: Callable[[Manifest], bool]) -> str | None:
    """Name of the generation that `staged` became, told as by `complete_publication`."""
    if staged.exists():
        return None
    for name in reversed(generation_names(index / layout.GENERATIONS)):
        # One that is damaged, or whose removal was cut off, is not what has just been made.
        with suppress(OSError, StoreError):
            path = index / layout.GENERATIONS / name / layout.MANIFEST
            if is_mine(Manifest.from_json(path.read_bytes())):
                return name
    return None


def _next_number(generations: Path) -> int:
    return max(map(_ordinal, generation_names(generations)), default=0) + 1


def _ordinal(name: str) -> int:
    return int(name[:6])
