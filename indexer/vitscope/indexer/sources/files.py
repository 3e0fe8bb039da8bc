"""Reading files that a list or a folder names."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vitscope.indexer.errors import SourceError

SUFFIXES = frozenset(
    ".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .jp2 .avif".split()  # noqa: SIM905
)
"""Endings of file names, in lower case, that are taken for pictures."""


def read_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises OSError for anything else: a pipe would be waited for, and a device has no end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        # A name with a null byte.
        raise OSError(errno.EINVAL, str(error)) from None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read()


def file_size(path: Path) -> int:
    """Length of a file; 0 where it is not there, since reading it will say why."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


def refuse_folder(error: OSError) -> None:
    """For `os.walk`, which else passes over a folder that it cannot look into."""
    raise SourceError(f"Folder {error.filename} cannot be read ({error.strerror}).")
