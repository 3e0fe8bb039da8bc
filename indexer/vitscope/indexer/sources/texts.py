"""Columns of text that cost little more than their bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def utf8(text: str) -> str:
    """`text` with what UTF-8 cannot hold spelled out, as in names of files in other encodings."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Strings as one run of UTF-8 bytes: text i lies between edges i and i + 1."""

    _data: bytes
    _edges: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, number: int) -> str:
        return self._data[self._edges[number] : self._edges[number + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))


class TextsBuilder:
    """Collects strings in order."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._edges = array("q", [0])

    def add(self, text: str) -> None:
        """Append one string."""
        self._data += text.encode()
        self._edges.append(len(self._data))

    def freeze(self) -> Texts:
        """The strings added so far."""
        return Texts(bytes(self._data), np.array(self._edges, np.int64))


class Names:
    """Collects strings of which few differ, such as labels; None is a value too."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._codes = array("i")

    def add(self, name: str | None) -> None:
        """Append one name."""
        known = self._numbers
        self._codes.append(-1 if name is None else known.setdefault(name, len(known)))

    def freeze(self) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
        """An index into the names for every entry, -1 for None, and the names."""
        return np.array(self._codes, np.int32), tuple(self._numbers)
