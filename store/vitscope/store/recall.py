"""How many of the true nearest neighbours a search finds, by brute force over all vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial

import numpy as np
import numpy.typing as npt

from vitscope.store.vectors import Floats, Halves, Ids, Vectors, cosines, normalise

NEAREST = 10
_KEPT = 32
"""Nearest that are remembered, so that those as near as the tenth are known."""
_AS_NEAR = 2e-6
"""Cosines that differ by less are equal: what float32 rounds."""
_AT_ONCE = 4_096

Search = Callable[[Floats, Ids], Sequence[Ids]]
"""From queries (Q, C) of length 1 and their ids (Q,) to the candidates of each."""


class Truth:
    """The true nearest neighbours of some vectors of a set; the vectors themselves left out."""

    def __init__(self, vectors: Vectors, ids: Ids, pool: Executor, *, elsewhere: bool) -> None:
        """Of the vectors with `ids` (Q,); `add` then has to be given all vectors of the set.

        With `elsewhere`, none of the same image counts.
        """
        self.left_out = [
            vectors.beside(id_) if elsewhere else range(id_, id_ + 1) for id_ in ids.tolist()
        ]
        self._vectors = vectors
        self._queries: Halves = vectors.read(ids)
        self._pool = pool
        self._near = np.full((len(ids), _KEPT), -np.inf, np.float32)
        self._nearest = np.full((len(ids), _KEPT), -1, np.int64)
        self.units: Floats = normalise(self._queries)
        """The queries, of length 1."""

    def add(self, units: Floats, ids: Ids) -> None:
        """Hold vectors (M, C) of length 1 against the queries."""
        starts = range(0, len(ids), _AT_ONCE)
        nearest_of = partial(_nearest, self.units, self.left_out)
        parts = [
            (units[start : start + _AT_ONCE], ids[start : start + _AT_ONCE]) for start in starts
        ]
        for near, nearest in self._pool.map(nearest_of, parts):
            both = np.concatenate([self._near, near], 1)
            of = np.concatenate([self._nearest, nearest], 1)
            order = np.argsort(-both, 1, kind="stable")[:, :_KEPT]
            self._near = np.take_along_axis(both, order, 1)
            self._nearest = np.take_along_axis(of, order, 1)

    def recall(self, found: Sequence[Ids], some: slice) -> float:
        """Share of the ten nearest that are among what was `found` for some of the queries.

        Any that are as near as the tenth count for it.
        """
        places = range(*some.indices(len(self.left_out)))
        hits = [self._hits(place, ids) for place, ids in zip(places, found, strict=True)]
        return float(np.sum(hits) / (len(hits) * self._wanted))

    @property
    def _wanted(self) -> int:
        return min(NEAREST, self._vectors.count - len(self.left_out[0]))

    def _hits(self, place: int, found: Ids) -> int:
        bar = self._near[place, self._wanted - 1] - _AS_NEAR
        as_near: npt.NDArray[np.bool_] = self._near[place] >= bar
        if not as_near.all():
            count = np.isin(found, self._nearest[place, as_near]).sum()
        else:
            # There may be others than are remembered.
            query = self._queries[place].astype(np.float64)
            count = (cosines(self._vectors.read(np.sort(found)), query) >= bar).sum()
        return min(int(count), self._wanted)


def _nearest(
    units: Floats, left_out: Sequence[range], part: tuple[Floats, Ids]
) -> tuple[Floats, Ids]:
    """The nearest (Q, at most K) of a part of all vectors."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors, ids = part
    # More, for what is left out may be among them.
    wanted = min(_KEPT + max(map(len, left_out)), len(ids))
    near, places = faiss.knn(units, vectors, wanted, metric=faiss.METRIC_INNER_PRODUCT)
    nearest: Ids = ids[places]
    first, stop = (np.array([getattr(each, end) for each in left_out]) for end in ("start", "stop"))
    near[(nearest >= first[:, None]) & (nearest < stop[:, None])] = -np.inf
    order = np.argsort(-near, 1, kind="stable")[:, :_KEPT]
    return np.take_along_axis(near, order, 1), np.take_along_axis(nearest, order, 1)
