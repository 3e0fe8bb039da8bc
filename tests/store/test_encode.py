"""Shards written without TensorStore: its bytes to the last, and its errors."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.store import encode
from vitscope.store.arrays import Array, ArraySpec, create_array, open_array
from vitscope.store.encode import ShardWriter
from vitscope.store.errors import NotWrittenError

DTYPES = ("uint8", "int32", "int64", "float16", "float32", "float64")
SPEC = ArraySpec("float16", (7, 10, 5), ("row", "channel", "token"), (4, 8, 6), (2, 4, 3))
Values = npt.NDArray[Any]


@pytest.fixture(scope="module", autouse=True)
def _small_slabs() -> Iterator[None]:
    """Slabs of a few chunks, so that small shards have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "_SLAB_BYTES", 200)
        yield


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[slice, ...]]:
    """Regions that were not left to TensorStore."""
    regions: list[tuple[slice, ...]] = []
    real = ShardWriter.write

    def write(self: ShardWriter, values: Values, region: tuple[slice, ...]) -> None:
        regions.append(region)
        real(self, values, region)

    monkeypatch.setattr(ShardWriter, "write", write)
    return regions


def tensorstore_array(path: Path, spec: ArraySpec) -> Array:
    """An array all of whose writes TensorStore does."""
    array = create_array(path, spec)
    array._shards = None
    return array


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def random_bits(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Values:
    """Any bits: NaN of all payloads, both zeros, infinities."""
    data = generator.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    values = np.frombuffer(data, dtype).reshape(shape).copy()
    values[generator.random(shape) < 0.2] = -0.0 if values.dtype.kind == "f" else 0
    return values


def view_of(values: Values, axes: tuple[int, ...], gaps: bool) -> Values:
    """The same values with their axes in another order in memory, and with gaps there."""
    laid = np.ascontiguousarray(values.transpose(axes))
    if gaps:
        laid = np.repeat(laid, 2, axis=-1)[..., ::2]
    return laid.transpose(np.argsort(axes))


@st.composite
def cases(draw: st.DrawFn) -> tuple[ArraySpec, list[tuple[slice, ...]]]:
    """An array, and regions of whole shards that are all of it."""
    ndim = draw(st.integers(1, 4))
    chunk, shard, shape, cuts = [], [], [], []
    for _ in range(ndim):
        chunk.append(draw(st.integers(1, 4)))
        shard.append(chunk[-1] * draw(st.integers(1, 3)))
        shape.append(draw(st.integers(1, 2 * shard[-1] + 1)))
    for length, step in zip(shape, shard, strict=True):
        inner = range(step, length, step)
        cut = draw(st.sets(st.sampled_from(inner))) if inner else set()
        edges = [0, *sorted(cut), length]
        cuts.append([slice(a, b) for a, b in pairwise(edges)])
    order = draw(st.one_of(st.just(()), st.permutations(range(ndim)).map(tuple)))
    names = tuple("abcd"[:ndim])
    spec = ArraySpec(
        draw(st.sampled_from(DTYPES)), tuple(shape), names, tuple(shard), tuple(chunk), order
    )
    regions: list[tuple[slice, ...]] = [()]
    for parts in cuts:
        regions = [(*region, part) for region in regions for part in parts]
    return spec, regions


@settings(deadline=None)
@given(cases(), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False), st.booleans())
def test_bytes_are_those_that_tensorstore_writes(
    case: tuple[ArraySpec, list[tuple[slice, ...]]], seed: int, chance: Any, gaps: bool
) -> None:
    spec, regions = case
    values = random_bits(np.random.default_rng(seed), spec.dtype, spec.shape)
    axes = list(range(values.ndim))
    chance.shuffle(axes)
    values = view_of(values, tuple(axes), gaps)
    with tempfile.TemporaryDirectory() as folder:
        theirs = tensorstore_array(Path(folder, "theirs"), spec)
        ours = create_array(Path(folder, "ours"), spec)
        assert ours._shards is not None
        for region in regions:
            assert ours._shards.region(values[region], region) == region
            ours.write(values[region], *region)
            theirs.write(values[region], *region)
        assert files(Path(folder, "ours")) == files(Path(folder, "theirs"))
        member = zarr.open_array(str(Path(folder, "ours")), mode="r")
        for found in (open_array(Path(folder, "ours")).read(), np.asarray(member[...])):
            assert found.dtype == values.dtype
            assert found.tobytes() == values.tobytes()


def test_what_is_written_over_reads_anew(tmp_path: Path, encoded: list[Any]) -> None:
    generator = np.random.default_rng(3)
    first, second = (random_bits(generator, SPEC.dtype, SPEC.shape) for _ in range(2))
    array = create_array(tmp_path / "twice", SPEC)
    for values in (first, second):
        array.write(values)
        # Twice: the second answer may come from a cache.
        reader = open_array(tmp_path / "twice")
        for _ in range(2):
            assert reader.read().tobytes() == values.tobytes()
            assert array.read().tobytes() == values.tobytes()
    assert len(encoded) == 2


def test_parts_of_a_shard_go_over_whole_ones_and_back(tmp_path: Path, encoded: list[Any]) -> None:
    generator = np.random.default_rng(4)
    array = create_array(tmp_path / "mixed", SPEC)
    values = random_bits(generator, SPEC.dtype, SPEC.shape)
    for number in range(4):
        values = random_bits(generator, SPEC.dtype, SPEC.shape)
        array.write(values)
        for row in (0, 5):
            values[row] = number
            array.write(values[row : row + 1], slice(row, row + 1))
        assert open_array(tmp_path / "mixed").read().tobytes() == values.tobytes()
    theirs = tensorstore_array(tmp_path / "theirs", SPEC)
    theirs.write(values)
    assert files(tmp_path / "mixed") == files(tmp_path / "theirs")
    assert len(encoded) == 4


@pytest.mark.parametrize(
    ("index", "whole"),
    [
        ((), True),
        ((slice(0, 4),), True),
        ((slice(4, 7), slice(8, None)), True),
        ((slice(4, 8),), False),
        ((slice(0, 5),), False),
        ((slice(2, 7),), False),
        ((slice(0, 7, 2),), False),
        ((slice(-3, None),), False),
        ((3,), False),
        ((np.arange(7),), False),
        ((slice(4, 4),), False),
    ],
)
def test_only_whole_shards_are_encoded_here(
    tmp_path: Path, index: tuple[Any, ...], whole: bool
) -> None:
    shards = create_array(tmp_path / "a", SPEC)._shards
    assert shards is not None
    values = np.zeros(SPEC.shape, np.float16)[index]
    assert (shards.region(values, index) is not None) == whole
    # Values that are converted or repeated are TensorStore's.
    for other in (values.astype(np.float32), values.astype(">f2"), values[:1], 1.0):
        assert shards.region(other, index) is None


def test_without_the_compiled_checksum_tensorstore_writes(
    tmp_path: Path, encoded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("google_crc32c.implementation", "python")
    values = np.ones(SPEC.shape, np.float16)
    create_array(tmp_path / "a", SPEC).write(values)
    assert not encoded
    assert np.array_equal(open_array(tmp_path / "a").read(), values)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk refuses it: Disk quota exceeded"),
    ],
)
@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_what_the_disk_refuses_is_said_and_leaves_the_old_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str, call: str
) -> None:
    array = create_array(tmp_path / "scores", SPEC)
    array.write(np.ones(SPEC.shape, np.float16))

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        with pytest.raises(NotWrittenError) as caught:
            array.write(np.zeros(SPEC.shape, np.float16))
    assert str(caught.value) == f"Array scores cannot be written; {reason}."
    assert (open_array(tmp_path / "scores").read() == 1).all()
    array.write(np.zeros(SPEC.shape, np.float16))
    assert (open_array(tmp_path / "scores").read() == 0).all()


def test_files_and_the_folders_made_for_them_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = create_array(tmp_path / "a", SPEC)
    synced: list[str] = []
    real: Callable[[int], None] = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(path.relative_to(tmp_path).as_posix())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    array.write(np.ones(SPEC.shape, np.float16))
    shards = [f"a/c/{row}/{channel}/.0.partial" for row in (0, 1) for channel in (0, 1)]
    folders = ["a", "a/c", "a/c/0", "a/c/1", *[str(Path(name).parent) for name in shards]]
    assert synced[:4] == shards
    assert sorted(synced[4:]) == sorted(folders)
