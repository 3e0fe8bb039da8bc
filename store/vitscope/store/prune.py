"""Removing generations older than the published one.

A generation first takes a name that readers pass over, then goes: a death in between leaves a
folder that the next call sweeps.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vitscope.store import layout
from vitscope.store.errors import NotWrittenError, StoreError
from vitscope.store.files import sync_directory
from vitscope.store.generation import generation_names, open_generation
from vitscope.store.lock import lock_alone, writing

_REMOVED = ".removed"


class UnfinishedIndexError(StoreError):
    """A run that has not been published may build on an older generation."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` did, or would do."""

    generation: str
    """The published one."""
    removed: tuple[str, ...]
    """Oldest first, like all three."""
    kept: tuple[str, ...]
    """Older than the published one, and among the newest that were to stay."""
    in_use: tuple[str, ...]
    """Left, because a process is reading them."""
    freed_bytes: int
    """Of files that no other generation shares, left-overs of interrupted calls included."""


def prune(index: Path, *, keep: int = 0, dry_run: bool = False) -> Pruned:
    """Remove the generations of `index` older than the published one, except the newest `keep`.

    With `dry_run`, only say which. Raises `BusyIndexError` while the index is being written,
    `UnfinishedIndexError` where a run waits to be finished, `NotWrittenError` where the disk
    refuses, `NoLocksError` where nobody can tell what is being read, and what `open_generation`
    raises: older generations stay while the published one cannot be opened.
    """
    current = open_generation(index).name
    try:
        return _prune(index, current, keep=keep, dry_run=dry_run)
    except OSError as error:
        raise NotWrittenError(
            f"{index} cannot be pruned: {error.strerror} ({error.filename or index}); mend that "
            "and prune it again."
        ) from error


def _prune(index: Path, current: str, *, keep: int, dry_run: bool) -> Pruned:
    folder = index / layout.GENERATIONS
    with ExitStack() as stack:
        stack.enter_context(writing(index))
        expect_finished(index)
        older = [name for name in generation_names(folder) if name < current]
        cut = max(0, len(older) - keep)
        free = [name for name in older[:cut] if stack.enter_context(_unread(folder / name))]
        left_over = _left_over(folder)
        freed = _bytes_of([*left_over, *(folder / name for name in free)])
        if not dry_run:
            for path in left_over:
                shutil.rmtree(path)
            for name in free:
                _remove(folder / name)
    in_use = tuple(name for name in older[:cut] if name not in free)
    return Pruned(current, tuple(free), tuple(older[cut:]), in_use, freed)


def expect_finished(index: Path) -> None:
    """Raise `UnfinishedIndexError` where a run waits that may build on what is published."""
    if (index / layout.WORK / "plan.json").exists():
        raise UnfinishedIndexError(
            f"{index} has an unfinished run that may build on an older generation; finish it "
            f"with its own `vitscope index` command, or remove {index / layout.WORK}."
        )


@contextmanager
def _unread(generation: Path) -> Iterator[bool]:
    """Whether no process reads the generation; if so, none can begin to inside the block."""
    manifest = generation / layout.MANIFEST
    try:
        descriptor = _open_to_lock(manifest)
    except FileNotFoundError:
        # Without a manifest nobody can open it.
        yield True
        return
    try:
        yield lock_alone(manifest, descriptor)
    finally:
        os.close(descriptor)


def _open_to_lock(path: Path) -> int:
    try:
        # NFS locks against everybody only what is open for writing.
        return os.open(path, os.O_RDWR)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY)


def _remove(generation: Path) -> None:
    hidden = generation.with_name(f".{generation.name}{_REMOVED}")
    generation.rename(hidden)
    sync_directory(generation.parent)
    shutil.rmtree(hidden)


def _left_over(folder: Path) -> list[Path]:
    """What interrupted calls left in `folder`."""
    pulling = [path for path in [folder / layout.PULLING] if path.is_dir()]
    return [*sorted(folder.glob(f".??????-????????????????{_REMOVED}")), *pulling]


def _bytes_of(folders: Iterable[Path]) -> int:
    """Bytes that the disk gets back with `folders`: of files all of whose links are in them."""
    found: Counter[tuple[int, int]] = Counter()
    size = {}
    links = {}
    for folder in folders:
        for path in folder.rglob("*"):
            status = path.lstat()
            file = status.st_dev, status.st_ino
            if not path.is_dir():
                found[file] += 1
                size[file], links[file] = status.st_size, status.st_nlink
    return sum(size[file] for file, count in found.items() if count >= links[file])
