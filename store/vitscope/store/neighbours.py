"""Nearest images and patches in a layer's activation space, by cosine of the stored activations.

FAISS proposes candidates, which are ranked by the activations themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.store import approximate
from vitscope.store.approximate import SIZES, Recall, Sizes
from vitscope.store.errors import DamagedIndexError
from vitscope.store.files import streaming_atomically
from vitscope.store.ranking import largest
from vitscope.store.vectors import Floats, Ids, Vectors, cosines, normalise

Query = npt.NDArray[np.float64]

NONE = range(0)
_CANDIDATES = 100
"""Fewest that are ranked exactly where the search is approximate, and how many for each asked."""
_CANDIDATES_EACH = 4


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A FAISS index over vectors of length 1, by inner product."""

    _index: Any

    @property
    def exact(self) -> bool:
        """Whether it holds all vectors as they are, so that none can be missed."""
        return not hasattr(self._index, "nprobe")

    def candidates(self, query: Floats, k: int, leave_out: range = NONE) -> Ids:
        """Ids (M,) among which the `k` nearest to a query (C,) are, or most of them.

        Those in `leave_out` are not among them. At least `k`, or all that there are.
        """
        found = self._all_as_near if self.exact else self._likely
        return found(query, k, leave_out)

    def _all_as_near(self, query: Floats, k: int, leave_out: range) -> Ids:
        """All that float32 cannot tell to be farther than the `k`-th."""
        total = self._index.ntotal
        k = min(k + len(leave_out), total)
        wanted = min(k + 16, total)
        while True:
            near, ids = self._index.search(query[None], wanted)
            # A sum of C products is off by C units in the last place of 1 at most, as is another.
            bar = near[0, k - 1] - 2 * (len(query) + 4) * 2.0**-24 if k else 0
            if wanted == total or near[0, -1] < bar:
                return _others(ids[0][near[0] >= bar], leave_out)
            wanted = min(2 * wanted, total)

    def _likely(self, query: Floats, k: int, leave_out: range) -> Ids:
        import faiss

        total = self._index.ntotal
        most = max(_CANDIDATES_EACH * k, _CANDIDATES)
        wanted = min(most + len(leave_out), total)
        probes = self._index.nprobe
        while True:
            # FAISS's own type stubs do not know what it takes.
            how = faiss.SearchParametersIVF(nprobe=probes)  # type: ignore[call-arg]
            _, ids = self._index.search(query[None], wanted, params=how)
            found = _others(ids[0][ids[0] >= 0], leave_out)
            if len(found) >= min(k, total - len(leave_out)) or probes >= self._index.nlist:
                return found[:most]
            probes = min(2 * probes, self._index.nlist)


def _others(ids: Ids, leave_out: range) -> Ids:
    return ids[(ids < leave_out.start) | (ids >= leave_out.stop)]


def nearest(
    index: Neighbours, vectors: Vectors, query: Query, k: int, leave_out: range = NONE
) -> tuple[Ids, Floats]:
    """Ids and cosines (k,) of the vectors nearest to `query` (C,), without those in `leave_out`.

    Higher cosine first, then lower id; fewer where there are fewer. What `index` misses is missing.
    """
    found = np.sort(index.candidates(normalise(query[None])[0], k, leave_out))
    return _best(found, cosines(vectors.read(found), query), k)


def scan(
    vectors: Vectors,
    query: Query,
    k: int,
    leave_out: range = NONE,
    going: Callable[[], None] = lambda: None,
) -> tuple[Ids, Floats]:
    """The same by a look at every vector, a block at a time; exact.

    `going` is called before each block, and may raise.
    """
    ids, near = np.empty(0, np.int64), np.empty(0, np.float32)
    for block, block_ids in vectors.blocks():
        going()
        others = _others(block_ids, leave_out)
        there = np.isin(block_ids, others, assume_unique=True)
        some = cosines(block if there.all() else block[there], query)
        # The kept ones come first: among equals they have the lower ids.
        ids, near = _best(np.concatenate([ids, others]), np.concatenate([near, some]), k)
    return ids, near


def _best(ids: Ids, near: Floats, k: int) -> tuple[Ids, Floats]:
    best = largest(near, min(k, len(near)))
    return ids[best], near[best]


def prepare(threads: int | None = None) -> None:
    """Load FAISS, so that a missing one is noticed now, and cap the calling thread's helpers."""
    import faiss

    if threads:
        faiss.omp_set_num_threads(threads)


def build(path: Path, vectors: Vectors, sizes: Sizes = SIZES, workers: int | None = None) -> Recall:
    """Write to `path` an index of `vectors`, of a kind that suits their number.

    Gives the share of the true ten nearest that a search finds. The bytes do not depend on
    `workers`, the threads that help. A flat index holds the vectors once, as FAISS keeps them;
    others hold their codes and a sample. Raises `OSError` where the disk refuses the file.
    """
    import faiss

    if vectors.count < sizes.flat_below:
        index, recall = _flat(vectors), Recall(1.0, 1.0)
    else:
        index, recall = approximate.build(vectors, sizes, workers, lambda built: Neighbours(built))
    with streaming_atomically(path) as file:
        # FAISS's own type stubs lack it.
        writer: Any = vars(faiss)["PyCallbackIOWriter"](file.write)
        faiss.write_index(index, writer)
    return recall


def _flat(vectors: Vectors) -> Any:
    import faiss

    flat = faiss.IndexFlatIP(vectors.channels)
    # Room for all of them at once: growing would hold them twice.
    flat.codes.resize(vectors.count * vectors.channels * np.dtype(np.float32).itemsize)
    flat.codes.resize(0)
    index = faiss.IndexIDMap2(flat)
    for block, ids in vectors.blocks():
        index.add_with_ids(normalise(block), ids)
    return index


def load(data: bytes) -> Neighbours:
    """The index serialised in `data`, whose digest the caller has checked."""
    import faiss

    try:
        return Neighbours(faiss.deserialize_index(np.frombuffer(data, np.uint8)))
    except RuntimeError as error:
        raise DamagedIndexError("A FAISS index of the store is not readable as one.") from error
