"""WebDataset-style tar shards: indexed once, then read at random.

Members that follow each other and share their path up to the first dot of the file name are a
sample. Its picture is a row; `.cls` (text) or `.json` (`label`, `boxes`) beside it say what it
shows. Archives are never unpacked: a member's name is only ever a key.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources.boxlist import NO_BOXES, RowBoxes, boxes_from, label_from, load_json
from vitscope.indexer.sources.files import SUFFIXES
from vitscope.indexer.sources.members import Archive, Member
from vitscope.indexer.sources.notices import Notices
from vitscope.indexer.sources.rows import RowListBuilder, Source
from vitscope.indexer.sources.texts import utf8
from vitscope.store.text import counted

_SIDECARS = ("cls", "json")
_SIDECAR_BYTES = 16 << 20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""Compressions that cannot be read at random, by a file's first bytes."""

_Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class TarShards(Source):
    """Rows are in the order of the shards and of the members in each."""

    _paths: Sequence[Path]
    _stamps: Sequence[_Stamp]
    """Length and time of change of each shard when the list was frozen."""
    _shards: npt.NDArray[np.int32]
    _starts: npt.NDArray[np.int64]
    _refused: Mapping[int, str]

    def read(self, row: int) -> bytes:
        """The bytes of a picture; raises OSError where they are refused or have changed."""
        if row in self._refused:
            raise OSError(errno.EINVAL, self._refused[row])
        shard, size = int(self._shards[row]), self.rows[row].bytes
        descriptor = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The places of members are those of the archive that was listed.
            if _stamp(descriptor) != self._stamps[shard]:
                raise OSError(errno.ESTALE, "its archive has changed since the rows were listed")
            data = _read_part(descriptor, int(self._starts[row]), size)
        finally:
            os.close(descriptor)
        if len(data) != size:
            raise OSError(errno.EIO, "its archive has fewer bytes than when the rows were listed")
        return data


def open_tar(shards: Sequence[tuple[str, Path]], *, limit: int | None = None) -> TarShards:
    """List the pictures in `shards`, of which each has a name for its keys and a path.

    At most `limit` of them. Raises `SourceError` where a shard is missing, compressed or no tar,
    or where none holds a picture. What lies before the cut of a truncated shard is kept.
    """
    indexer = _Indexer(limit)
    for name, path in shards:
        if indexer.room != 0:
            indexer.add_shard(name, path)
    if not len(indexer.rows):
        raise SourceError(
            f"{shards[0][1]}{' and the other shards hold' if len(shards) > 1 else ' holds'} no "
            f"picture; vitscope looks for members ending in {', '.join(sorted(SUFFIXES))}."
        )
    return indexer.freeze()


class _Indexer:
    """Collects rows from shards."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.rows = RowListBuilder()
        self._notices = Notices()
        self._paths: list[Path] = []
        self._stamps: list[_Stamp] = []
        self._shards = array("i")
        self._starts = array("q")
        self._refused: dict[int, str] = {}

    @property
    def room(self) -> int | None:
        """How many more rows are wanted; None for any number."""
        return None if self._limit is None else self._limit - len(self.rows)

    def freeze(self) -> TarShards:
        return TarShards(
            self.rows.freeze(),
            self._notices.sentences(),
            self._paths,
            self._stamps,
            np.array(self._shards, np.int32),
            np.array(self._starts, np.int64),
            self._refused,
        )

    def add_shard(self, name: str, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"The shard {path} cannot be read ({error.strerror}).") from None
        try:
            _check_plain(descriptor, path)
            self._paths.append(path)
            self._stamps.append(_stamp(descriptor))
            archive = Archive(descriptor)
            before = len(self.rows)
            for sample in _samples(archive.members()):
                self._add_sample(name, descriptor, sample)
                if self.room == 0:
                    return
        finally:
            os.close(descriptor)
        if archive.fault:
            found = len(self.rows) - before
            self._notices.say(
                f"{path} is not a whole archive ({archive.fault}); it gives "
                f"{counted(found, 'picture')}, and any behind the fault are missing."
            )

    def _add_sample(self, shard: str, descriptor: int, sample: Sequence[Member]) -> None:
        pictures = _pictures(sample)
        sidecars = [member for member in sample if _extension(member) in _SIDECARS]
        if not pictures:
            for member in sidecars:
                self._notices.count(
                    "labels or boxes without their picture just before or behind them "
                    "(`tar --sort=name` brings them together)",
                    f"{shard}/{utf8(member.name)}",
                )
            return
        label, boxes = self._described(shard, descriptor, sidecars)
        for member in pictures[: self.room]:
            if member.refusal:
                self._refused[len(self.rows)] = member.refusal
            key = f"{shard}/{utf8(member.name).removeprefix('./')}"
            self.rows.add(key, label, member.size, boxes)
            self._shards.append(len(self._paths) - 1)
            self._starts.append(member.start)

    def _described(
        self, shard: str, descriptor: int, sidecars: Iterable[Member]
    ) -> tuple[str | None, RowBoxes]:
        """Label and boxes of a sample; `.cls` goes before the label of `.json`."""
        label, boxes = None, NO_BOXES
        for member in sorted(sidecars, key=_extension):
            try:
                data = _sidecar(descriptor, member)
                if _extension(member) == "cls":
                    label = data.decode("utf-8").strip() or None
                    continue
                found = load_json(data)
                if isinstance(found, dict):
                    label = label or label_from(found.get("label"))
                    boxes = boxes_from(found.get("boxes"))
            except ValueError as error:
                fault = "it is not UTF-8" if isinstance(error, UnicodeError) else error
                where = f"{shard}/{utf8(member.name)}"
                self._notices.count("labels or boxes of pictures", f"in {where} ({fault})")
        return label, boxes


def _samples(members: Iterable[Member]) -> Iterator[list[Member]]:
    def sample(member: Member) -> str:
        folder, _, file = member.name.rpartition("/")
        return f"{folder}/{file.split('.', 1)[0]}"

    seen = (member for member in members if not _hidden(member))
    return (list(group) for _, group in groupby(seen, sample))


def _hidden(member: Member) -> bool:
    return any(part.startswith(".") and part.strip(".") for part in member.name.split("/"))


def _pictures(sample: Sequence[Member]) -> list[Member]:
    """The members of a sample that are rows.

    Beside `7.jpg`, `7.seg.png` is a companion; where there is no such picture, `my.cat.jpg` is
    one itself.
    """
    plain = [member for member in sample if f".{_extension(member)}" in SUFFIXES]
    return plain or [m for m in sample if Path(m.name).suffix.lower() in SUFFIXES]


def _extension(member: Member) -> str:
    """All behind the first dot of the file name, in lower case."""
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _sidecar(descriptor: int, member: Member) -> bytes:
    if member.refusal:
        raise ValueError(member.refusal)
    if member.size > _SIDECAR_BYTES:
        raise ValueError(f"it has more than {_SIDECAR_BYTES:,} bytes")
    return _read_part(descriptor, member.start, member.size)


def _check_plain(descriptor: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise SourceError(f"{path} is not a file.")
    head = os.pread(descriptor, 512, 0)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise SourceError(
                f"{path} is compressed with {name}, so its pictures cannot be read at random; "
                f"decompress it once ({name} -d) and give the .tar."
            )
    first = Archive(descriptor)
    if head and next(first.members(), None) is None and first.fault:
        raise SourceError(f"{path} is no tar archive.")


def _read_part(descriptor: int, start: int, size: int) -> bytes:
    """`size` bytes from `start`, fewer at the end of the file."""
    parts = []
    while size and (part := os.pread(descriptor, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return b"".join(parts)


def _stamp(descriptor: int) -> _Stamp:
    state = os.fstat(descriptor)
    return state.st_size, state.st_mtime_ns
