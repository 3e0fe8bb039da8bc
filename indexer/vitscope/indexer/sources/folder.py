"""Freezing the row list: which images there are, in which order, before the first forward."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from vitscope.indexer.errors import SourceError

SUFFIXES = frozenset(
    ".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .jp2 .avif".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One image of the row list."""

    key: str
    """Path below the folder, with forward slashes."""
    label: str | None
    """First folder of the path (ImageFolder layout); None for an image at the top."""
    bytes: int
    """Length of the file when the list was frozen."""


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """A folder of image files; the row of an image is its place in the sorted list of paths."""

    root: Path
    rows: tuple[SourceRow, ...]
    _paths: tuple[Path, ...]

    def read(self, row: int) -> bytes:
        """The bytes of an image file; raises OSError where it can no longer be read."""
        return (self.root / self._paths[row]).read_bytes()

    def digest(self) -> str:
        """SHA-256 over keys, labels and byte lengths, in order."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps([row.key, row.label, row.bytes]).encode() + b"\n")
        return digest.hexdigest()


def open_folder(root: Path, *, limit: int | None = None) -> ImageFolder:
    """List the images below `root`, sorted by path; at most `limit` of them.

    Hidden files and folders are passed over. Raises `SourceError` where there is no folder, or no
    image in it.
    """
    if not root.is_dir():
        raise SourceError(f"There is no folder of pictures {root}.")
    paths = sorted(_image_paths(root), key=lambda path: path.as_posix())[:limit]
    if not paths:
        raise SourceError(
            f"{root} holds no picture; vitscope looks for files ending in "
            f"{', '.join(sorted(SUFFIXES))} in it and its sub-folders."
        )
    return ImageFolder(root, tuple(_row(root, path) for path in paths), tuple(paths))


def _image_paths(root: Path) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(folder).relative_to(root)
        found += [
            below / name
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return found


def _row(root: Path, path: Path) -> SourceRow:
    # A file name need not be UTF-8; a key is.
    key = os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
    label = key.split("/", 1)[0] if "/" in key else None
    try:
        size = (root / path).stat().st_size
    except OSError:
        # A dangling link keeps its row; reading it will say why it is invalid.
        size = 0
    return SourceRow(key, label, size)
