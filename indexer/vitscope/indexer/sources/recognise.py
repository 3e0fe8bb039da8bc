"""Which kind of source a path is, by what is there."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path

from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources.arrow import INFO, SPLITS, STATE, open_arrow
from vitscope.indexer.sources.boxes import with_xml_boxes
from vitscope.indexer.sources.folder import image_paths, open_folder
from vitscope.indexer.sources.rows import Source
from vitscope.indexer.sources.table import open_table
from vitscope.indexer.sources.tar import open_tar

_LISTS = (".csv", ".parquet")
_COMPRESSED_TARS = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SHARDS_AT_MOST = 1_000_000


def open_source(
    path: Path, *, limit: int | None = None, split: str | None = None, boxes: Path | None = None
) -> Source:
    """List the pictures of whatever is at `path`; at most `limit` of them.

    A folder of pictures, of tar shards or of a Hugging Face data set (there `split` chooses one
    of several); a tar shard, or a pattern of them; a CSV or Parquet list. `boxes` is a folder of
    PASCAL VOC annotations. Raises `SourceError` where `path` is nothing of the kind, or more than
    one of them.
    """
    source = _open(path, limit, split)
    return with_xml_boxes(source, boxes) if boxes else source


def _open(path: Path, limit: int | None, split: str | None) -> Source:
    if path.is_dir() and _is_arrow(path):
        return open_arrow(path, limit=limit, split=split)
    if split is not None:
        raise SourceError(f"--split is for Hugging Face data sets, and {path} is none.")
    if path.is_dir():
        return _open_folder(path, limit)
    if not path.exists():
        shards = _matching(path)
        top = os.path.commonpath([shard.parent for shard in shards])
        named = [(shard.relative_to(top).as_posix(), shard) for shard in shards]
        return open_tar(named, limit=limit)
    suffix = path.suffix.lower()
    if suffix in _LISTS:
        return open_table(path, limit=limit)
    if suffix == ".tar" or _COMPRESSED_TARS.search(path.name):
        return open_tar([(path.name, path)], limit=limit)
    raise SourceError(
        f"{path} is no source of pictures; give a folder, a .tar, or a list ending in "
        f"{' or '.join(_LISTS)}."
    )


def _is_arrow(folder: Path) -> bool:
    single = (folder / STATE).is_file() and (folder / INFO).is_file()
    several = (folder / SPLITS).is_file()
    if (single or several) and next(_top(folder, ".tar"), None):
        raise SourceError(
            f"{folder} holds both a Hugging Face data set and tar shards; give one of them."
        )
    return single or several


def _open_folder(folder: Path, limit: int | None) -> Source:
    shards = sorted(_top(folder, ".tar"))
    picture = next(image_paths(folder), None)
    if shards and picture:
        raise SourceError(
            f"{folder} holds both tar shards and pictures, such as {shards[0].name} and "
            f"{picture}; give one of them, the shards as {folder}/*.tar."
        )
    if shards:
        return open_tar([(shard.name, shard) for shard in shards], limit=limit)
    if picture is None:
        for other in sorted(path for path in folder.iterdir() if path.is_file()):
            if _COMPRESSED_TARS.search(other.name):
                raise SourceError(
                    f"{other} is compressed, so its pictures cannot be read at random; "
                    "decompress it once and give the .tar."
                )
            if other.suffix.lower() in _LISTS:
                raise SourceError(
                    f"{folder} holds no picture; for the list {other.name} in it, give {other}."
                )
    return open_folder(folder, limit=limit)


def _top(folder: Path, suffix: str) -> Iterator[Path]:
    return (
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(suffix) and not path.name.startswith(".")
    )


def _matching(pattern: Path) -> list[Path]:
    """The shards that a pattern with braces or wildcards means, in order."""
    text = str(pattern)
    if not any(char in text for char in "{*?["):
        raise SourceError(f"There is no folder of pictures, archive or list {pattern}.")
    found = []
    for part in _expanded(text):
        if glob.has_magic(part):
            found += sorted(glob.glob(part, recursive=True))
        else:
            found.append(part)
    paths = [Path(each) for each in dict.fromkeys(found)]
    if not paths:
        raise SourceError(f"No file matches {pattern}.")
    for path in paths:
        if not path.is_file():
            raise SourceError(f"There is no shard {path}.")
        if path.suffix.lower() != ".tar" and not _COMPRESSED_TARS.search(path.name):
            raise SourceError(f"A pattern is for tar shards, and {path} is none.")
    return paths


def _expanded(text: str) -> Iterator[str]:
    """`a-{00..12}.tar` and `{train,val}.tar`, as a shell expands them."""
    parts = _BRACES.split(text)
    choices = [_choices(part) if place % 2 else [part] for place, part in enumerate(parts)]
    if prod(len(choice) for choice in choices) > _SHARDS_AT_MOST:
        raise SourceError(f"{text} means more than {_SHARDS_AT_MOST:,} shards.")
    return ("".join(each) for each in product(*choices))


def _choices(part: str) -> list[str]:
    if not (found := _RANGE.fullmatch(part)):
        return part.split(",")
    first, last = found.groups()
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    numbers = range(int(first), min(int(last), int(first) + _SHARDS_AT_MOST) + 1)
    return [f"{number:0{width}d}" for number in numbers]
