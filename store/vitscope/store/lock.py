"""One writer at a time: an advisory lock on the file INDEX/lock, held by who changes the index.

Runs that share out the units of an index (`--shard`) hold it together, against all others. The
lock belongs to the open file, so a worker process that inherits its descriptor keeps it after
the death of the process that took it: nobody writes beside a worker that is left over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitscope.store import layout
from vitscope.store.errors import StoreError

_LEFT_OVER_SECONDS = 20.0
"""How long the workers of a dead process may take to notice that they are alone."""

_NONE_HERE = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What file systems without locks say."""


class BusyIndexError(StoreError):
    """Another process is writing the index."""

    exit_code = 3


class NoLocksError(StoreError):
    """The file system cannot keep writers and readers of the index apart."""


@contextmanager
def writing(index: Path) -> Iterator[int]:
    """Be the only writer of the index at `index`, which must exist; gives the lock's descriptor.

    Raises `BusyIndexError`, with the number of the process that has it, where it is taken, and
    `NoLocksError` where the file system has no locks.
    """
    with _held(index, fcntl.LOCK_EX) as descriptor:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield descriptor
        finally:
            os.ftruncate(descriptor, 0)


@contextmanager
def writing_together(index: Path) -> Iterator[int]:
    """As `writing`, but others that write together may do so at the same time."""
    with _held(index, fcntl.LOCK_SH) as descriptor:
        yield descriptor


@contextmanager
def _held(index: Path, kind: int) -> Iterator[int]:
    descriptor = os.open(index / layout.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(index, descriptor, kind)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def holding(path: Path) -> Iterator[int | None]:
    """Hold the file at `path`, made where it is missing; None where another process holds it.

    Gives the descriptor that holds it. Raises `NoLocksError`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor if lock_alone(path, descriptor) else None
    finally:
        os.close(descriptor)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold the file at `path` as soon as no other process does."""
    while True:
        with holding(path) as held:
            if held is not None:
                yield
                return
        time.sleep(0.05)


def lock_alone(path: Path, descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock the open file `path` against everybody else; False where another has a lock on it.

    With `LOCK_SH` as its `kind`, against those who want it alone. Raises `NoLocksError` where the
    file system has no locks, or none for this file.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # NFS lends a lock against everybody to whoever may write the file.
        if error.errno == errno.EBADF:
            raise NoLocksError(
                f"{path} may not be written, and its file system locks no such file; give it "
                "write permission and run the same command again."
            ) from error
        if error.errno in _NONE_HERE:
            raise NoLocksError(
                f"The file system of {path} has no locks ({error.strerror}), which keep the "
                "writers and readers of an index apart; mount it with locks, or keep the index on "
                "another."
            ) from error
        raise
    return True


def _take(index: Path, descriptor: int, kind: int) -> None:
    deadline = time.monotonic() + _LEFT_OVER_SECONDS
    while not lock_alone(index / layout.LOCK, descriptor, kind):
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        if _runs(holder) or time.monotonic() > deadline:
            # Those who write together leave no name.
            who = f"process {holder}" if holder else "a run in shards"
            raise BusyIndexError(f"{index} is being written by {who}; wait for it or stop it.")
        time.sleep(0.05)


def _runs(process: str) -> bool:
    if not process.isdecimal():
        # It has the lock and has not yet said who it is, or is letting go of it.
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
