"""FAISS indexes for many vectors: inverted lists of codes, and how much of them a search reads.

Sivic and Zisserman, "Video Google", 2003, for the lists; Jégou, Douze and Schmid, "Product
quantization for nearest neighbor search", 2011, for lists of residuals' codes.

What FAISS does with several threads may differ in the last bits from what it does with one. So it
has one thread here, and threads of ours work side by side on pieces whose cuts never change.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from vitscope.store.recall import NEAREST, Truth
from vitscope.store.vectors import Floats, Ids, Vectors, normalise

_SEED = 20_261_126
_ROUNDS = 10
"""Of k-means."""
_AT_ONCE = 4_096
_ID_BYTES = 8
_ENCODER_SAMPLE = 16_384
_ENOUGH = 0.001
"""What two doublings of the lists that are read must gain in recall to be worth a third."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which kind of index suits how many vectors, and what making it may cost."""

    flat_below: int = 50_000
    """Vectors from which on there are inverted lists."""
    code_bytes: int = 8 << 30
    """Bytes of codes of one byte a channel beyond which products are quantised."""
    lists: int = 8_192
    """Most inverted lists; four times the root of the number of vectors if fewer."""
    sample_each: int = 32
    """Vectors of the training sample for each list,"""
    sample_bytes: int = 1 << 30
    """and the most that they take in float32."""
    recall: float = 0.97
    """Of the ten nearest, on queries by which the number of lists to read is chosen."""
    choosing: int = 256
    """Of such queries; at most a fifth of all."""
    queries: int = 1_280
    """Of all queries, also those on which recall is measured,"""
    fewest_queries: int = 128
    """which are fewer, but not below this, where"""
    work: float = 4e13
    """products for brute force would be more than this."""


SIZES = Sizes()


class Recall(NamedTuple):
    """Share of the true ten nearest that a search finds, measured on vectors of the set."""

    nearest: float
    """Where only the vector itself is left out."""
    elsewhere: float
    """Where all of the same image are."""


def vector_bytes(count: int, channels: int) -> int:
    """Bytes that each of `count` vectors takes in an index."""
    if count < SIZES.flat_below:
        return 4 * channels
    coded = channels if count * channels <= SIZES.code_bytes else _parts(channels)
    return coded + _ID_BYTES


class Searched(Protocol):
    """What proposes candidates."""

    def candidates(self, query: Floats, k: int, leave_out: range = ...) -> Ids:
        """Ids (M,) among which the `k` nearest to a query (C,) are, or most of them."""


def build(
    vectors: Vectors, sizes: Sizes, workers: int | None, search: Callable[[Any], Searched]
) -> tuple[Any, Recall]:
    """An index of `vectors`, and the recall of a `search` in it for the ten nearest."""
    generator = np.random.default_rng(_SEED)
    with _one_thread_each(workers) as pool:
        sample = _sample(generator, vectors, _sample_size(vectors, sizes))
        index = _trained(vectors, sizes, sample, pool)
        del sample
        queries = _sample(generator, vectors, _queries(vectors, sizes))
        generator.shuffle(queries)
        alone = Truth(vectors, queries, pool, elsewhere=False)
        elsewhere = alone
        if len(alone.left_out[0]) < len(vectors.beside(int(queries[0]))):
            elsewhere = Truth(vectors, queries, pool, elsewhere=True)
        _fill(index, vectors, {alone, elsewhere}, pool)
        choosing = slice(0, min(sizes.choosing, len(queries) // 5))
        measuring = slice(choosing.stop, len(queries))
        recall_of = partial(_recall, search(index), pool)
        # To find what lies in other images is harder: those of the same one crowd the lists.
        _choose(index, sizes, partial(recall_of, elsewhere, choosing))
        return index, Recall(recall_of(alone, measuring), recall_of(elsewhere, measuring))


@contextmanager
def _one_thread_each(workers: int | None) -> Iterator[Executor]:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            yield pool
    finally:
        faiss.omp_set_num_threads(before)


def _lists(vectors: Vectors, sizes: Sizes) -> int:
    return min(round(4 * math.sqrt(vectors.count)), sizes.lists, vectors.count)


def _sample_size(vectors: Vectors, sizes: Sizes) -> int:
    room = sizes.sample_bytes // (4 * vectors.channels)
    wanted = min(sizes.sample_each * _lists(vectors, sizes), vectors.count // 2, room)
    return max(wanted, _lists(vectors, sizes))


def _queries(vectors: Vectors, sizes: Sizes) -> int:
    affordable = int(sizes.work / (2 * vectors.count * vectors.channels))
    return min(max(sizes.fewest_queries, min(sizes.queries, affordable)), vectors.count)


def _sample(generator: np.random.Generator, vectors: Vectors, size: int) -> Ids:
    """Ids (size,) of vectors drawn without replacement, ascending."""
    places = generator.choice(vectors.count, size, replace=False, shuffle=False)
    return vectors.ids(np.sort(places))


def _trained(vectors: Vectors, sizes: Sizes, sample: Ids, pool: Executor) -> Any:
    """An empty index that knows its lists and its codes."""
    import faiss

    channels, lists = vectors.channels, _lists(vectors, sizes)
    units = normalise(vectors.read(sample))
    quantizer = faiss.IndexFlatIP(channels)
    index: Any
    quantizer.add(_centres(units, lists, pool))
    if vectors.count * channels <= sizes.code_bytes:
        index = faiss.IndexIVFScalarQuantizer(
            quantizer,
            channels,
            lists,
            faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT,
        )
    else:
        parts = _parts(channels)
        index = faiss.IndexIVFPQ(quantizer, channels, lists, parts, 8, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.niter = _ROUNDS
        index.pq.cp.min_points_per_centroid = 1
    index.train(units[:: max(1, len(units) // _ENCODER_SAMPLE)])
    return index


def _parts(channels: int) -> int:
    """Into how many parts of about 8 channels a vector is cut, each of which gets a byte."""
    return max(parts for parts in range(1, max(1, channels // 8) + 1) if channels % parts == 0)


def _centres(units: Floats, lists: int, pool: Executor) -> Floats:
    """Middles (L, C) of the lists: spherical k-means over vectors (M, C) of length 1.

    Dhillon and Modha, "Concept decompositions for large sparse text data using clustering", 2001.
    """
    centres = units[:: len(units) // lists][:lists].copy()
    for _ in range(_ROUNDS):
        nearest = _assigned(units, centres, pool)
        sums = np.zeros(centres.shape)
        for start in range(0, len(units), _AT_ONCE):
            mine = nearest[start : start + _AT_ONCE]
            order = np.argsort(mine, kind="stable")
            among, starts = np.unique(mine[order], return_index=True)
            sums[among] += np.add.reduceat(units[start : start + _AT_ONCE][order], starts, 0)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        # A list that got none keeps its place.
        centres = np.divide(sums, length, out=centres.astype(np.float64), where=length > 0)
        centres = centres.astype(np.float32)
    return centres


def _assigned(units: Floats, centres: Floats, pool: Executor) -> Ids:
    """The list (M,) that each of the vectors (M, C) belongs to."""
    starts = range(0, len(units), _AT_ONCE)
    pieces = [units[start : start + _AT_ONCE] for start in starts]
    found = list(pool.map(partial(_nearest, centres), pieces))
    return np.concatenate([np.empty(0, np.int64), *found])


def _nearest(centres: Floats, units: Floats) -> Ids:
    import faiss

    faiss.omp_set_num_threads(1)
    _, nearest = faiss.knn(units, centres, 1, metric=faiss.METRIC_INNER_PRODUCT)
    lists: Ids = nearest[:, 0]
    return lists


def _fill(index: Any, vectors: Vectors, truths: Iterable[Truth], pool: Executor) -> None:
    """Add all vectors, and hold each against the queries while it is there."""
    import faiss

    quantizer: Any = faiss.downcast_index(index.quantizer)
    centres = faiss.vector_to_array(quantizer.codes).view(np.float32)
    centres = centres.reshape(-1, vectors.channels)
    for block, ids in vectors.blocks():
        units = normalise(block)
        lists = _assigned(units, centres, pool)
        pointers = [faiss.swig_ptr(each) for each in (units, ids, lists)]
        index.add_core(len(ids), *pointers)
        for truth in truths:
            truth.add(units, ids)


def _recall(search: Searched, pool: Executor, truth: Truth, some: slice) -> float:
    """Recall for the ten nearest of some of the queries."""

    def candidates(query: Floats, left_out: range) -> Ids:
        import faiss

        faiss.omp_set_num_threads(1)
        return search.candidates(query, NEAREST, left_out)

    found = list(pool.map(candidates, truth.units[some], truth.left_out[some]))
    return truth.recall(found, some)


def _choose(index: Any, sizes: Sizes, recall: Callable[[], float]) -> None:
    """Set how many lists a search reads: the least, doubling, that finds enough.

    Where codes are too coarse for that, the least beyond which little is gained.
    """
    tried: list[tuple[int, float]] = []
    probes = 1
    while True:
        index.nprobe = probes
        tried.append((probes, recall()))
        if tried[-1][1] >= sizes.recall:
            return
        gained = tried[-1][1] - tried[-3][1] if len(tried) > 2 else 1.0
        if probes == index.nlist or (gained < _ENOUGH and tried[-1][1] > 0.5):
            break
        probes = min(2 * probes, index.nlist)
    best = max(found for _, found in tried)
    index.nprobe = next(probes for probes, found in tried if found >= best - _ENOUGH)
