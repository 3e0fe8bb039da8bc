"""A folder of image files, in ImageFolder layout or flat."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources.files import SUFFIXES, file_size, read_file, refuse_folder
from vitscope.indexer.sources.rows import RowListBuilder, Source


@dataclass(frozen=True, slots=True, eq=False)
class ImageFolder(Source):
    """The row of an image is its place in the sorted list of paths; a key is such a path.

    The first folder of a path is the label; an image at the top has none.
    """

    root: Path
    _odd_names: Mapping[int, str]
    """By row: paths whose key is another text, since they are not UTF-8."""

    def read(self, row: int) -> bytes:
        """The bytes of an image file; raises OSError where it can no longer be read."""
        return read_file(self.root / (self._odd_names.get(row) or self.rows.keys[row]))


def open_folder(root: Path, *, limit: int | None = None) -> ImageFolder:
    """List the images below `root`, sorted by path; at most `limit` of them.

    Hidden files and folders are passed over. Raises `SourceError` where there is no folder, or no
    image in it.
    """
    if not root.is_dir():
        raise SourceError(f"There is no folder of pictures {root}.")
    paths = sorted(image_paths(root))[:limit]
    if not paths:
        raise SourceError(
            f"{root} holds no picture; vitscope looks for files ending in "
            f"{', '.join(sorted(SUFFIXES))} in it and its sub-folders."
        )
    rows = RowListBuilder()
    odd = {}
    for row, path in enumerate(paths):
        # A file name need not be UTF-8; a key is.
        key = os.fsencode(path).decode("utf-8", "backslashreplace")
        label = key.split("/", 1)[0] if "/" in key else None
        rows.add(key, label, file_size(root / path))
        if key != path:
            odd[row] = path
    frozen = rows.freeze()
    # Two names in different encodings may have been told apart by more than their spelling.
    odd |= {row: paths[row] for row, _ in rows.repeated()}
    return ImageFolder(frozen, (), root, odd)


def image_paths(root: Path) -> Iterator[str]:
    """Paths below `root`, with forward slashes, of all image files that are not hidden."""
    for folder, folders, files in os.walk(root, onerror=refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(folder).relative_to(root).as_posix()
        before = "" if below == "." else f"{below}/"
        yield from (
            f"{before}{name}"
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        )
