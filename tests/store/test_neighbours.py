"""Nearest images, against cosines computed one by one."""

from __future__ import annotations

import math
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from synthetic import Synthetic

from vitscope.store import neighbours
from vitscope.store.errors import DamagedIndexError
from vitscope.store.generation import open_generation
from vitscope.store.vectors import ImageVectors, normalise

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]

TOLERANCE = 1e-6
"""Float32 is what a similarity is rounded to, once."""


def cosine(left: npt.NDArray[np.floating], right: npt.NDArray[np.floating]) -> float:
    a, b = [float(x) for x in left], [float(x) for x in right]
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def finder(synthetic: Synthetic, layer: str) -> Callable[[int, int], Found]:
    """Finds the nearest of a row, as the server does."""
    generation = open_generation(synthetic.path)
    index, vectors = generation.neighbours(layer), generation.image_vectors(layer)

    def near_to(row: int, k: int) -> Found:
        query = generation.image_scores(layer, "mean", row).astype(np.float64)
        return neighbours.nearest(index, vectors, query, k, range(row, row + 1))

    return near_to


def check(found: npt.NDArray[np.int64], near: npt.NDArray[np.float32], truth: list[float]) -> None:
    """`truth` is the true similarity of every row; -2 for those that may not be found."""
    rows = found.tolist()
    assert len(set(rows)) == len(rows)
    for row, similarity in zip(rows, near.tolist(), strict=True):
        assert similarity == pytest.approx(truth[row], abs=TOLERANCE)
        assert -1 <= similarity <= 1
    pairs = list(zip((-near).tolist(), rows, strict=True))
    assert pairs == sorted(pairs)
    # Nobody left out is nearer than the last one found.
    left_out = [value for row, value in enumerate(truth) if row not in rows]
    assert max(left_out, default=-2) <= near[-1] + TOLERANCE


@pytest.mark.parametrize("layer", ["blocks.0.mlp", "stages.1.blocks.0.mlp", "blocks.1.mlp"])
def test_nearest_of_every_row(synthetic: Synthetic, layer: str) -> None:
    near_to = finder(synthetic, layer)
    for row in np.flatnonzero(synthetic.valid).tolist():
        truth = np.where(synthetic.valid, synthetic.cosines(layer, row), -2.0)
        truth[row] = -2
        for k in (1, 7, 64):
            found, near = near_to(row, k)
            assert (len(found), found.dtype.name, near.dtype.name) == (k, "int64", "float32")
            check(found, near, truth.tolist())


@pytest.mark.parametrize("layer", ["blocks.0.mlp", "stages.1.blocks.0.mlp", "blocks.1.mlp"])
def test_fewer_neighbours_are_the_first_of_more(synthetic: Synthetic, layer: str) -> None:
    near_to = finder(synthetic, layer)
    for row in np.flatnonzero(synthetic.valid)[::8].tolist():
        everyone = near_to(row, 64)[0].tolist()
        for k in range(1, 64):
            assert near_to(row, k)[0].tolist() == everyone[:k], (row, k)


def test_copies_of_a_picture_come_by_their_rows(synthetic: Synthetic) -> None:
    copies = [3, 9, 40, 41, 66]
    for layer in synthetic.layers:
        near_to = finder(synthetic, layer)
        for row in (1, 3, 8, 12, 41, 64):
            for k in range(1, 64, 2):
                among = [found for found in near_to(row, k)[0].tolist() if found in copies]
                assert among == [copy for copy in copies if copy != row][: len(among)]


def test_a_picture_without_activity_is_near_to_all_alike(synthetic: Synthetic) -> None:
    found, near = finder(synthetic, "blocks.0.mlp")(12, 5)
    assert found.tolist() == [1, 2, 3, 4, 5]
    assert near.tolist() == [0] * 5


class Held:
    """An array in memory, read as one on the disk is."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values = values
        self.shape = values.shape

    def read(self, *index: Any) -> npt.NDArray[Any]:
        part: npt.NDArray[Any] = self.values[index]
        return part


def held(vectors: npt.NDArray[np.float16], ids: npt.NDArray[np.int64]) -> ImageVectors:
    """The set of `vectors` (M, C) at rows `ids` (M,) of a larger array of NaN."""
    rows = int(ids.max(initial=-1)) + 2
    scores = np.full((rows, vectors.shape[1]), np.nan, np.float16)
    scores[ids] = vectors
    return ImageVectors(Held(scores), ids)


def built(vectors: ImageVectors) -> bytes:
    """The file that `build` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.faiss"
        assert neighbours.build(path, vectors) == (1, 1)
        assert [each.name for each in path.parent.iterdir()] == [path.name]
        return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float16,
        st.tuples(st.integers(2, 30), st.integers(1, 9)),
        elements=st.integers(-3, 3).map(float),
    ),
    st.data(),
)
def test_nearest_of_small_random_sets(
    vectors: npt.NDArray[np.float16], draw: st.DataObject
) -> None:
    count = len(vectors)
    ids = np.array(sorted(draw.draw(st.permutations(range(count + 5)))[:count]), np.int64)
    place = draw.draw(st.integers(0, count - 1))
    k = draw.draw(st.integers(1, count - 1))
    kept, own = held(vectors, ids), int(ids[place])
    index, query = neighbours.load(built(kept)), vectors[place].astype(np.float64)
    found, near = neighbours.nearest(index, kept, query, k, range(own, own + 1))
    scanned = neighbours.scan(kept, query, k, range(own, own + 1))
    assert (found.tolist(), near.tolist()) == (scanned[0].tolist(), scanned[1].tolist())
    truth = [-2.0] * (count + 5)
    for other, row in enumerate(ids.tolist()):
        if other != place:
            truth[row] = cosine(vectors[place], vectors[other])
    assert len(found) == k
    check(found, near, truth)


@given(
    hnp.arrays(
        np.float16,
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        elements=st.floats(-65504, 65504, width=16).filter(lambda x: x == 0 or abs(x) > 1e-2),
    )
)
def test_normalised_vectors_have_length_one_or_zero(vectors: npt.NDArray[np.float16]) -> None:
    before = vectors.copy()
    scaled = normalise(vectors)
    assert scaled.dtype == np.float32
    assert np.array_equal(vectors, before)
    for vector, unit in zip(vectors.astype(float), scaled.astype(float), strict=True):
        length = math.hypot(*vector.tolist())
        assert math.hypot(*unit.tolist()) == pytest.approx(1.0 if length else 0.0, abs=1e-5)
        assert np.allclose(unit * length, vector, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("data", [b"", b"garbage", b"IxM2" + b"\0" * 40])
def test_what_faiss_cannot_read_is_damage(data: bytes) -> None:
    with pytest.raises(DamagedIndexError):
        neighbours.load(data)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_the_file_is_that_of_one_index_made_at_once(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitscope.store.vectors._ROWS_AT_ONCE", 64)
    vectors = np.random.default_rng(5).normal(size=(count, 7)).astype(np.float16)
    rows = 3 * np.arange(count, dtype=np.int64)
    whole = faiss.IndexIDMap2(faiss.IndexFlatIP(7))
    whole.add_with_ids(normalise(vectors), rows)
    assert built(held(vectors, rows)) == faiss.serialize_index(whole).tobytes()


def test_a_disk_that_refuses_the_file_is_said_and_leaves_none(tmp_path: Path) -> None:
    vectors = np.ones((4, 7), np.float16)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            neighbours.build(tmp_path / "layer.faiss", held(vectors, np.arange(4)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "layer.faiss").exists()
