"""Nearest images in a layer's activation space: a FAISS index over mean-pooled activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.store.errors import DamagedIndexError, NotKeptError
from vitscope.store.files import streaming_atomically

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Block = tuple[npt.NDArray[Any], Rows]
"""Vectors (M, C) and the rows (M,) they belong to."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """An index whose ids are rows and whose inner product is cosine similarity."""

    _index: Any

    def nearest(self, row: int, k: int) -> tuple[Rows, Vectors]:
        """Rows (k,) and cosine similarities (k,) of the `k` images nearest to image `row`.

        The image itself is left out; higher similarity first, then lower row. Raises
        `NotKeptError` where `row` has no activations.
        """
        try:
            query = self._index.reconstruct(row)[None]
        except RuntimeError as error:
            raise NotKeptError(f"Row {row} is an invalid image and has no neighbours.") from error
        rows, similarities = self._search(query, k + 1)
        others = rows != row
        found, near = rows[others], similarities[others]
        order = np.lexsort((found, -near))[:k]
        return found[order], near[order]

    def nearest_to(self, vector: npt.NDArray[Any], k: int) -> tuple[Rows, Vectors]:
        """Rows and cosine similarities of the `k` images nearest to `vector` (C,), likewise."""
        rows, near = self._search(normalise(vector[None]), k)
        order = np.lexsort((rows, -near))[:k]
        return rows[order], near[order]

    def _search(self, query: Vectors, k: int) -> tuple[Rows, Vectors]:
        """The `k` nearest to `query` (1, C), and all others as near as the last of them.

        Which of several equally near images FAISS gives last is its own affair.
        """
        total = self._index.ntotal
        wanted = min(k + 1, total)
        while True:
            similarities, rows = self._index.search(query, wanted)
            near = np.clip(similarities[0], -1, 1)
            if wanted == total or near[-1] < near[k - 1]:
                return rows[0], near
            wanted = min(2 * wanted, total)


def prepare(threads: int | None = None) -> None:
    """Load FAISS, so that a missing one is noticed now, and cap the calling thread's helpers."""
    import faiss

    if threads:
        faiss.omp_set_num_threads(threads)


def normalise(vectors: npt.NDArray[Any]) -> Vectors:
    """Scale each vector of (N, C) to length 1 in float32; a zero vector stays zero."""
    wide = vectors.astype(np.float32)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    np.divide(wide, length, out=wide, where=length > 0)
    return wide


def build(path: Path, channels: int, count: int, blocks: Iterable[Block]) -> None:
    """Write to `path` the exact index of `count` vectors (C,), in the order of their rows.

    Holds the vectors once, as FAISS keeps them. Raises `OSError` where the disk refuses the file.
    """
    import faiss

    flat = faiss.IndexFlatIP(channels)
    # Room for all of them at once: growing would hold them twice.
    flat.codes.resize(count * channels * np.dtype(np.float32).itemsize)
    flat.codes.resize(0)
    index = faiss.IndexIDMap2(flat)
    for vectors, rows in blocks:
        index.add_with_ids(normalise(vectors), rows)
    with streaming_atomically(path) as file:
        # FAISS's own type stubs lack it.
        writer: Any = vars(faiss)["PyCallbackIOWriter"](file.write)
        faiss.write_index(index, writer)


def load(data: bytes) -> Neighbours:
    """The index serialised in `data`, whose digest the caller has checked."""
    import faiss

    try:
        return Neighbours(faiss.deserialize_index(np.frombuffer(data, np.uint8)))
    except RuntimeError as error:
        raise DamagedIndexError("A FAISS index of the store is not readable as one.") from error
