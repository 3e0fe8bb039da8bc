"""Indexes for many vectors: their recall against brute force, and that they are the same bytes.

`VITSCOPE_VECTORS` says how many patches the recall is measured over.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from vitscope.store import neighbours
from vitscope.store.approximate import SIZES, Recall, Sizes
from vitscope.store.manifest import TokenLayout
from vitscope.store.vectors import ImageVectors, PatchVectors, Vectors

VECTORS = int(os.environ.get("VITSCOPE_VECTORS", "20000"))
CELLS, CHANNELS, DIMENSIONS = 50, 96, 12
TOKENS = TokenLayout.even(("cls",), 5, 10, (50, 100))
SMALL = replace(SIZES, flat_below=1_000, queries=600, choosing=100)

Half = npt.NDArray[np.float16]


class Held:
    """An array in memory, read as one on the disk is."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values = values
        self.shape = values.shape

    def read(self, *index: Any) -> npt.NDArray[Any]:
        part: npt.NDArray[Any] = self.values[index]
        return part


def activations(images: int, channels: int = CHANNELS, seed: int = 3) -> Half:
    """Like those of a trained model: (N, C, T).

    Large and small groups that vary along few dimensions, most values near 0, some noise.
    """
    generator = np.random.default_rng(seed)
    groups = images * CELLS // 40
    middles = generator.normal(scale=1.5, size=(groups, DIMENSIONS))
    weights = 1 / np.arange(1, groups + 1) ** 0.7
    of = generator.choice(groups, images * (CELLS + 1), p=weights / weights.sum())
    latent = middles[of] + generator.normal(scale=0.5, size=(len(of), DIMENSIONS))
    wide = latent @ generator.normal(size=(DIMENSIONS, channels)) / np.sqrt(DIMENSIONS)
    wide += generator.normal(scale=0.1, size=wide.shape) - 0.5
    # The shape of GELU: a small dip below 0, and linear above.
    values = (wide / (1 + np.exp(-1.702 * wide))).astype(np.float16)
    # Some patches are of one colour, and the same wherever they are.
    values[generator.choice(len(values), len(values) // 100)] = values[0]
    shaped: Half = values.reshape(images, CELLS + 1, channels).transpose(0, 2, 1)
    return shaped


def patches_of(values: Half) -> PatchVectors:
    """The patches of all but every seventh image."""
    rows = np.flatnonzero(np.arange(len(values)) % 7 != 3)
    return PatchVectors(Held(values), TOKENS, rows)


def truth_of(values: Half) -> npt.NDArray[np.float64]:
    """All vectors (M, C) in the order of ids, of length 1."""
    rows = np.flatnonzero(np.arange(len(values)) % 7 != 3)
    flat = values[rows][:, :, 1:].transpose(0, 2, 1).reshape(-1, values.shape[1])
    wide = flat.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: npt.NDArray[np.float64] = np.divide(
        wide, length, out=np.zeros_like(wide), where=length > 0
    )
    return unit


def built(path: Path, vectors: Vectors, sizes: Sizes, workers: int | None = None) -> Recall:
    return neighbours.build(path, vectors, sizes, workers)


def measured(
    index: neighbours.Neighbours,
    vectors: Vectors,
    unit: npt.NDArray[np.float64],
    queries: int,
    elsewhere: bool = False,
) -> float:
    """Recall at 10 of the whole search, by cosines computed here, over drawn queries."""
    generator = np.random.default_rng(99)
    hits = []
    for place in generator.choice(len(unit), queries, replace=False).tolist():
        [own] = vectors.ids(np.array([place])).tolist()
        query = vectors.read(np.array([own]))[0].astype(np.float64)
        left_out = range(own - own % CELLS, own - own % CELLS + CELLS)
        left_out = left_out if elsewhere else range(own, own + 1)
        found, near = neighbours.nearest(index, vectors, query, 10, left_out)
        assert not set(found.tolist()) & set(left_out)
        assert len(set(found.tolist())) == 10
        cosines = unit @ unit[place]
        first = place - place % CELLS
        cosines[slice(first, first + CELLS) if elsewhere else place] = -2
        tenth = np.partition(cosines, -10)[-10]
        hits.append(np.count_nonzero(near >= tenth - 1e-6) / 10)
    return float(np.mean(hits))


@pytest.mark.parametrize("codes", ["bytes", "products"])
def test_recall_is_high_and_what_was_measured(tmp_path: Path, codes: str) -> None:
    images = -(-VECTORS // CELLS) * 7 // 6 + 1
    values = activations(images)
    vectors, unit = patches_of(values), truth_of(values)
    assert vectors.count == len(unit) >= VECTORS
    sizes = SMALL if codes == "bytes" else replace(SMALL, code_bytes=0)
    path = tmp_path / "layer.patches.faiss"
    recall = built(path, vectors, sizes)
    index = neighbours.load(path.read_bytes())
    assert not index.exact
    kind = faiss.IndexIVFScalarQuantizer if codes == "bytes" else faiss.IndexIVFPQ
    assert isinstance(index._index, kind)
    assert index._index.ntotal == len(unit)
    assert index._index.nprobe < index._index.nlist
    true = measured(index, vectors, unit, 1_500)
    true_elsewhere = measured(index, vectors, unit, 1_500, elsewhere=True)
    print(
        f"{codes}: manifest {recall}, measured {true:.4f}, {true_elsewhere:.4f}, "
        f"lists {index._index.nlist}, read {index._index.nprobe}"
    )
    assert abs(recall.nearest - true) < 0.02
    assert abs(recall.elsewhere - true_elsewhere) < 0.02
    # Eight channels to a byte lose some neighbours; the figure says so.
    assert true >= (0.95 if codes == "bytes" else 0.8)


@pytest.mark.parametrize("codes", ["bytes", "products"])
def test_the_bytes_do_not_depend_on_threads(tmp_path: Path, codes: str) -> None:
    vectors = patches_of(activations(120))
    sizes = SMALL if codes == "bytes" else replace(SMALL, code_bytes=0)
    files, recalls = set(), set()
    before = faiss.omp_get_max_threads()
    for workers, threads in ((1, 1), (2, 1), (3, 2), (1, 2)):
        faiss.omp_set_num_threads(threads)
        try:
            path = tmp_path / f"{workers}-{threads}"
            recalls.add(built(path, vectors, sizes, workers))
            assert faiss.omp_get_max_threads() == threads
        finally:
            faiss.omp_set_num_threads(before)
        files.add(path.read_bytes())
    assert len(files) == len(recalls) == 1


def test_neither_whole_sets_nor_their_copies_are_held(tmp_path: Path) -> None:
    """What is read is read in blocks, and what training takes is bounded."""
    values = activations(150)
    held, largest = Held(values), []

    class Watched(Held):
        def read(self, *index: Any) -> npt.NDArray[Any]:
            part = held.read(*index)
            largest.append(len(part))
            return part

    rows = np.arange(len(values))
    vectors = PatchVectors(Watched(values), TOKENS, rows)
    vectors._images = 10
    neighbours.build(tmp_path / "file", vectors, replace(SMALL, sample_bytes=CHANNELS * 4 * 500))
    assert max(largest) <= 10
    # Of 500 vectors of a sample: as many lists as there is room for.
    assert neighbours.load((tmp_path / "file").read_bytes())._index.nlist <= 500


def test_few_vectors_are_kept_as_they_are(tmp_path: Path) -> None:
    vectors = patches_of(activations(20))
    assert vectors.count < SMALL.flat_below
    assert neighbours.build(tmp_path / "file", vectors, SMALL) == (1, 1)
    assert neighbours.load((tmp_path / "file").read_bytes()).exact


def test_as_many_are_found_as_are_asked_for(tmp_path: Path) -> None:
    """Also where the lists that are read have fewer, and without all of one image."""
    values = activations(60)
    vectors, unit = patches_of(values), truth_of(values)
    built(tmp_path / "file", vectors, SMALL)
    index = neighbours.load((tmp_path / "file").read_bytes())
    query = vectors.read(np.array([0]))[0].astype(np.float64)
    for k in (1, 90, 1_000, len(unit) - CELLS):
        found, near = neighbours.nearest(index, vectors, query, k, range(CELLS))
        assert len(set(found.tolist())) == k
        assert found.min() >= CELLS
        assert sorted(near.tolist(), reverse=True) == near.tolist()
    everything, near = neighbours.scan(vectors, query, len(unit) - CELLS, range(CELLS))
    assert found.tolist() == everything.tolist()


@pytest.mark.parametrize("span", [1, 2, 15])
def test_images_are_read_as_they_lie(span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Close together by a slice, far apart one by one; each with its own id."""
    monkeypatch.setattr("vitscope.store.vectors._ROWS_AT_ONCE", 7)
    scores = np.arange(400, dtype=np.float16).reshape(200, 2)
    rows = np.flatnonzero(np.random.default_rng(span).integers(0, span, 200) == 0)
    vectors = ImageVectors(Held(scores), rows)
    blocks = list(vectors.blocks())
    assert np.concatenate([ids for _, ids in blocks]).tolist() == rows.tolist()
    assert np.array_equal(np.concatenate([block for block, _ in blocks]), scores[rows])
    assert vectors.ids(np.array([0, 1])).tolist() == rows[[0, 1]].tolist()


def test_patches_are_read_as_they_lie() -> None:
    values = activations(30, channels=8)
    vectors = patches_of(values)
    vectors._images = 4
    ids = np.concatenate([ids for _, ids in vectors.blocks()])
    rows = np.flatnonzero(np.arange(30) % 7 != 3)
    assert ids.tolist() == [row * CELLS + cell for row in rows for cell in range(CELLS)]
    assert vectors.ids(np.arange(vectors.count)).tolist() == ids.tolist()
    whole = np.concatenate([block for block, _ in vectors.blocks()])
    some = np.random.default_rng(1).choice(len(ids), 300)
    assert np.array_equal(vectors.read(ids[some]), whole[some])
    for place in some[:40].tolist():
        row, cell = divmod(int(ids[place]), CELLS)
        assert np.array_equal(whole[place], values[row, :, 1 + cell])
