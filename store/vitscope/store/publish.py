"""Turning a finished working folder into the published generation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitscope.store import layout
from vitscope.store.files import PARTIAL, sha256_file, sync_directory, tree_files, write_atomically
from vitscope.store.generation import generation_name, generation_names
from vitscope.store.manifest import FileRecord, Manifest


def publish(index: Path, staged: Path, manifest: Manifest) -> str:
    """Publish the folder `staged` as the next generation of `index`; gives its name.

    The manifest gets the digests of all files of `staged`. The pointer is renamed into place
    last, so that readers see the old generation or the whole new one.
    """
    for path in staged.rglob("*"):
        # What a write left behind that was cut off: ours, and TensorStore's.
        if path.name.endswith((PARTIAL, "__lock")):
            path.unlink()
    files = {
        path.as_posix(): FileRecord((staged / path).stat().st_size, sha256_file(staged / path))
        for path in tree_files(staged)
        if path.name != layout.MANIFEST
    }
    data = replace(manifest, files=files).to_json()
    write_atomically(staged / layout.MANIFEST, data)
    generations = index / layout.GENERATIONS
    generations.mkdir(exist_ok=True)
    name = generation_name(_next_number(generations), data)
    staged.rename(generations / name)
    sync_directory(generations)
    write_atomically(index / layout.CURRENT, f"{name}\n".encode())
    return name


def complete_publication(index: Path, staged: Path) -> str | None:
    """Finish a publication that was cut off after `staged` became a generation; gives its name.

    None where there is nothing to finish.
    """
    generations = index / layout.GENERATIONS
    names = generation_names(generations)
    if staged.exists() or not names:
        return None
    write_atomically(index / layout.CURRENT, f"{names[-1]}\n".encode())
    return names[-1]


def _next_number(generations: Path) -> int:
    return max((int(name[:6]) for name in generation_names(generations)), default=0) + 1
