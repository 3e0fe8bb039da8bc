"""The members of a tar file: names and places only, nothing is ever unpacked.

Python's own reader stops at a damaged header as if the archive ended there, and keeps an object
per member; this one says how an archive ended and keeps nothing.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vitscope.store.text import counted

_BLOCK = 512
_HEADER_BYTES = 1 << 20
"""A longer name or pax header is taken for damage."""
_EXTENDING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
)
"""Headers that say something of the members after them."""
_WITHOUT_BYTES = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
)
_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive."""

    name: str
    start: int
    """Where its bytes begin in the archive."""
    size: int
    refusal: str
    """Why its bytes are not given out; empty where they are."""


@dataclass(slots=True)
class _Extended:
    """What headers before a member say of it, in place of the member's own fields."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False

    def read(self, kind: bytes, data: bytes) -> None:
        """Take over a long name or a pax header; raises ValueError where it is damaged."""
        if kind == tarfile.GNUTYPE_LONGNAME:
            self.name = _text(data.split(b"\0", 1)[0])
        elif kind in (tarfile.XHDTYPE, tarfile.XGLTYPE):
            records = _pax_records(data)
            if (name := records.get(b"path")) is not None:
                self.name = _text(name)
            if (size := records.get(b"size")) is not None:
                self.size = int(size)
                if self.size < 0:
                    raise ValueError
            self.sparse |= any(key.startswith(b"GNU.sparse.") for key in records)


class Archive:
    """Reads the headers of an open tar file, one after the other."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._length = os.fstat(descriptor).st_size
        self._place = 0
        self._for_all = _Extended()
        self.fault = ""
        """How the archive ended, once it was read through; empty where it is whole."""

    def members(self) -> Iterator[Member]:
        """All files in order; directories are passed over.

        A file whose bytes are cut off is the last one, with its refusal.
        """
        while (found := self._next_header()) is not None:
            header, extended = found
            name = extended.name or self._for_all.name or header.name
            size = header.size if extended.size is None else extended.size
            start, kind = self._place, header.type
            filled = kind not in _WITHOUT_BYTES
            cut = filled and start + size > self._length
            self._place += _padded(size) if filled else 0
            if kind != tarfile.DIRTYPE:
                sparse = extended.sparse or self._for_all.sparse
                yield Member(name, start, size, _refusal(name, kind, sparse=sparse, cut=cut))
            if self._place > self._length:
                self.fault = f"it is cut off after {counted(self._length, 'byte')}"
                return

    def _next_header(self) -> tuple[tarfile.TarInfo, _Extended] | None:
        """A member's own header and what those before it say; None, and `fault`, at the end."""
        extended = _Extended()
        while True:
            block = os.pread(self._descriptor, _BLOCK, self._place)
            if len(block) < _BLOCK or not any(block):
                self.fault = self._end(len(block))
                return None
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                self._place += _BLOCK
                if header.type not in _EXTENDING:
                    if header.size < 0:
                        raise ValueError
                    return header, extended
                of = self._for_all if header.type == tarfile.XGLTYPE else extended
                of.read(header.type, self._bytes(header.size))
            except (tarfile.HeaderError, ValueError):
                self.fault = f"it is damaged near byte {self._place:,}"
                return None

    def _end(self, length: int) -> str:
        if length == _BLOCK:
            return ""
        if not self._length:
            return "it is empty"
        return f"it is cut off after {counted(self._length, 'byte')}"

    def _bytes(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise ValueError
        data = os.pread(self._descriptor, size, self._place)
        if len(data) < size:
            raise ValueError
        self._place += _padded(size)
        return data


def _refusal(name: str, kind: bytes, *, sparse: bool, cut: bool) -> str:
    """Why the bytes of a member are not given out."""
    if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        return "it is a link in its archive"
    if kind not in tarfile.REGULAR_TYPES or kind == tarfile.GNUTYPE_SPARSE or sparse:
        return "it is no plain file in its archive"
    if name.startswith("/") or ".." in name.split("/"):
        return "its name leads out of its archive"
    return "it is cut off by the end of its archive" if cut else ""


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> Mapping[bytes, bytes]:
    """Keywords and values of a pax header: `LENGTH KEYWORD=VALUE` and a line end, one by one."""
    records = {}
    place = 0
    while place < len(data) and data[place]:
        found = _PAX_RECORD.match(data, place)
        stop = place + int(found[1]) if found else 0
        if not found or not found.end() < stop <= len(data) or data[stop - 1 : stop] != b"\n":
            raise ValueError
        records[found[2]] = data[found.end() : stop - 1]
        place = stop
    return records
