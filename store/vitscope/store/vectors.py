"""The vectors of a layer among which likes are sought: one of each image, or one of each patch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vitscope.store.arrays import Readable
from vitscope.store.manifest import TokenLayout

Halves = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Block = tuple[Halves, Ids]
"""Vectors (M, C) and their ids (M,), ascending."""

_ROWS_AT_ONCE = 4_096
_ELEMENTS_AT_ONCE = 1 << 24
"""Activations that are read together."""
_CACHED = 1 << 17
"""Elements of a vector's float64 copy that stay in a core's cache."""


class Vectors(Protocol):
    """A set of vectors on disk, each with an id; read in blocks whose cuts never change."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def channels(self) -> int:
        """Elements of each, C."""

    def ids(self, places: Ids) -> Ids:
        """Ids (M,) of the vectors at places (M,) in the order of ids."""

    def beside(self, id_: int) -> range:
        """Ids of all vectors of the image that one is of, itself included."""

    def read(self, ids: Ids) -> Halves:
        """The vectors (M, C) with these ids (M,), in their order."""

    def blocks(self) -> Iterator[Block]:
        """All of them, in the order of ids."""


class ImageVectors:
    """Mean-pooled activations of images; ids are rows."""

    def __init__(self, scores: Readable, rows: Ids) -> None:
        """`scores` (N, C) are those of all rows; the set has `rows` (M,), ascending."""
        self._scores = scores
        self._rows = rows

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._rows)

    @property
    def channels(self) -> int:
        """Elements of each, C."""
        return self._scores.shape[1]

    def ids(self, places: Ids) -> Ids:
        """Rows (M,) of the images at places (M,) in the order of rows."""
        return self._rows[places]

    def beside(self, id_: int) -> range:
        """The image's own row."""
        return range(id_, id_ + 1)

    def read(self, ids: Ids) -> Halves:
        """The vectors (M, C) of rows (M,), in their order."""
        return self._scores.read(ids)

    def blocks(self) -> Iterator[Block]:
        """All of them, in the order of rows."""
        for start in range(0, len(self._rows), _ROWS_AT_ONCE):
            rows = self._rows[start : start + _ROWS_AT_ONCE]
            first, span = int(rows[0]), int(rows[-1] - rows[0]) + 1
            if span == len(rows):
                yield self._scores.read(slice(first, first + span)), rows
            elif span < 2 * len(rows):
                yield self._scores.read(slice(first, first + span))[rows - first], rows
            else:
                yield self._scores.read(rows), rows


class PatchVectors:
    """Activations of patches; ids are row * (H * W) + y * W + x."""

    def __init__(self, activations: Readable, tokens: TokenLayout, rows: Ids) -> None:
        """`activations` (N, C, T) are those of all rows; the set has `rows`, ascending."""
        self._activations = activations
        self._rows = rows
        self._prefix = len(tokens.prefix)
        self._cells = tokens.height * tokens.width
        self._images = max(1, _ELEMENTS_AT_ONCE // (activations.shape[1] * tokens.tokens))

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._rows) * self._cells

    @property
    def channels(self) -> int:
        """Elements of each, C."""
        return self._activations.shape[1]

    def ids(self, places: Ids) -> Ids:
        """Ids (M,) of the patches at places (M,) in the order of ids."""
        image, cell = np.divmod(places, self._cells)
        return self._rows[image] * self._cells + cell

    def beside(self, id_: int) -> range:
        """Ids of all patches of the image that one is of, itself included."""
        first = id_ - id_ % self._cells
        return range(first, first + self._cells)

    def read(self, ids: Ids) -> Halves:
        """The vectors (M, C) of patches (M,), in their order."""
        image, cell = np.divmod(ids, self._cells)
        found = np.empty((len(ids), self.channels), np.float16)
        order = np.argsort(image, kind="stable")
        rows, starts = np.unique(image[order], return_index=True)
        ends = [*starts[1:], len(ids)]
        for first in range(0, len(rows), self._images):
            some = rows[first : first + self._images]
            values = self._activations.read(some)  # [R, C, T]
            mine = order[starts[first] : ends[first + len(some) - 1]]
            place = np.searchsorted(some, image[mine])
            found[mine] = values[place, :, self._prefix + cell[mine]]
        return found

    def blocks(self) -> Iterator[Block]:
        """All of them, in the order of ids."""
        for start in range(0, len(self._rows), self._images):
            rows = self._rows[start : start + self._images]
            values = self._activations.read(rows)[:, :, self._prefix :]  # [R, C, P]
            vectors = values.transpose(0, 2, 1).reshape(-1, self.channels)
            ids = rows[:, None] * self._cells + np.arange(self._cells)
            yield vectors, ids.reshape(-1)


def normalise(vectors: npt.NDArray[Any]) -> Floats:
    """Scale each vector of (N, C) to length 1 in float32; a zero vector stays zero."""
    wide = vectors.astype(np.float32)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    np.divide(wide, length, out=wide, where=length > 0)
    return wide


def cosines(vectors: Halves, query: npt.NDArray[np.float64]) -> Floats:
    """Cosine similarity (M,) of vectors (M, C) to a query (C,), 0 where either is zero.

    Computed in float64 and rounded once, so that equal vectors are equally near wherever they lie.
    """
    near = np.empty(len(vectors), np.float32)
    length = np.sqrt(np.square(query).sum())
    step = max(1, _CACHED // max(1, len(query)))
    for start in range(0, len(vectors), step):
        wide = vectors[start : start + step].astype(np.float64)
        products = (wide * query).sum(1)
        scale = np.sqrt(np.square(wide).sum(1)) * length
        shares = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
        near[start : start + step] = np.clip(shares, -1, 1)
    return near
