"""Files that are written once, from their start to their end, and not read soon."""

from __future__ import annotations

import errno
import fcntl
import os
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import BinaryIO

from vitscope.store.files import begin_writing_back

BLOCK = 4 << 20
"""Bytes written at once: whole blocks of any disk, and enough to keep one busy."""

_spare: list[mmap] = []


class LargeFile:
    """Writes a new file, whole blocks of it past the system's cache where that can be.

    Pages of the cache are found, filled and given up again for bytes that nobody reads soon: 0.2
    seconds of a core for a gigabyte, and 2.3 on a virtual machine whose host hands out memory as it
    is touched, which the model lacks then. The disk gets the same bytes either way.
    """

    def __init__(self, file: BinaryIO) -> None:
        """`file` is open, empty, and nobody else's until `finish`."""
        self._file = file.fileno()
        self._buffer = _spare_buffer()
        self._filled = 0
        self._can = hasattr(os, "O_DIRECT")
        self.size = 0
        """Bytes so far."""
        self._written = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        while len(view):
            some = view[: BLOCK - self._filled]
            self._buffer[self._filled : self._filled + len(some)] = some
            self._filled += len(some)
            view = view[len(some) :]
            if self._filled == BLOCK:
                self._write_block()

    def finish(self) -> None:
        """Write what is left. The file is to be synchronised like any other."""
        self._past_cache(False)
        _write(self._file, memoryview(self._buffer)[: self._filled])
        _spare.append(self._buffer)

    def _write_block(self) -> None:
        self._filled = 0
        block, start = memoryview(self._buffer), self._written
        if self._can and self._past_cache(True):
            try:
                _write(self._file, block)
                self._written += BLOCK
                return
            except OSError as error:
                # Some file systems say only now that they do not do it.
                if error.errno != errno.EINVAL:
                    raise
        self._can = False
        self._past_cache(False)
        # A part of the block may be there already.
        os.lseek(self._file, start, os.SEEK_SET)
        _write(self._file, block)
        self._written += BLOCK
        begin_writing_back(self._file, start, BLOCK)

    def _past_cache(self, on: bool) -> bool:
        """Whether what is written from now on goes past the cache, as was asked."""
        if not hasattr(os, "O_DIRECT"):
            return not on
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(
                self._file, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT
            )
        except OSError:
            return False
        return True


def _spare_buffer() -> mmap:
    """One of a finished file, or a new one: on a border of pages, as such writes have to be."""
    try:
        return _spare.pop()
    except IndexError:
        # Private: a process that is forked must not write into it.
        return mmap(-1, BLOCK, flags=MAP_PRIVATE | MAP_ANONYMOUS)


def _write(file: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(file, data) :]
