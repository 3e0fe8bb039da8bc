"""Reading published arrays, beside NumPy's own indexing of the values that were written."""

from __future__ import annotations

import itertools
import math
import os
import resource
import shutil
import tempfile
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.store.arrays import ArraySpec, write_array
from vitscope.store.errors import DamagedIndexError, NotReadError
from vitscope.store.sealed import ChunkCache, SealedArray
from vitscope.store.seals import pack_seals, seal_files, unpack_seals
from vitscope.store.shards import ShardGrid

SPEC = ArraySpec("int32", (5, 7), ("y", "x"), (4, 6), (2, 2))


def written(folder: Path, spec: ArraySpec) -> npt.NDArray[np.int32]:
    values = np.arange(1, 1 + math.prod(spec.shape), dtype=np.int32).reshape(spec.shape)
    write_array(folder / "a", values, spec)
    return values


def opened(folder: Path, limit: int = 1 << 20) -> SealedArray:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    table = unpack_seals(pack_seals(folder, seal_files(folder, names)))["a"]
    grid = ShardGrid.from_metadata((folder / "a/zarr.json").read_bytes())
    return SealedArray(folder / "a", grid, lambda: table, ChunkCache(limit))


@st.composite
def specs(draw: st.DrawFn) -> ArraySpec:
    axes = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(axes))
    chunk = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    shard = tuple(c * draw(st.integers(1, 3)) for c in chunk)
    order = tuple(draw(st.permutations(range(axes))))
    return ArraySpec("int32", shape, tuple("abc"[:axes]), shard, chunk, order)


@st.composite
def indexes(draw: st.DrawFn, spec: ArraySpec) -> tuple[Any, ...]:
    """Integers and slices, one integer array at most, for some of the first axes."""
    parts: list[Any] = []
    kinds = ["int", "slice", "whole", "array"]
    for length in spec.shape[: draw(st.integers(0, len(spec.shape)))]:
        kind = draw(st.sampled_from(kinds))
        if kind == "array":
            # NumPy moves the axis of an array that stands beside an integer, but for one between.
            kinds = ["slice", "whole"]
            some = st.lists(st.integers(0, length - 1), max_size=5)
            parts.append(np.array(draw(some), np.int64))
        elif kind == "int":
            parts.append(draw(st.integers(0, length - 1)))
        else:
            parts.append(draw(st.slices(length)) if kind == "slice" else slice(None))
    if any(isinstance(part, int) for part in parts):
        parts = [slice(None) if isinstance(part, np.ndarray) else part for part in parts]
    return tuple(parts)


def turn_bit(path: Path, chunk: int, byte: int, spec: ArraySpec) -> None:
    data = bytearray(path.read_bytes())
    size = math.prod(spec.chunk) * 4
    data[chunk * (size + 4) + byte % size] ^= 1
    path.write_bytes(data)


def chunk_of(element: Sequence[int], spec: ArraySpec) -> tuple[str, int]:
    """The shard file of an element's chunk, and how many chunks lie before it there."""
    shard = [e // s for e, s in zip(element, spec.shard, strict=True)]
    axes = zip(shard, spec.shard, spec.shape, spec.chunk, strict=True)
    starts = [range(p * s, min((p + 1) * s, n), c) for p, s, n, c in axes]
    mine = tuple(e // c * c for e, c in zip(element, spec.chunk, strict=True))
    return "/".join(("c", *map(str, shard))), list(itertools.product(*starts)).index(mine)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_reads_are_those_of_numpy(draw: st.DataObject) -> None:
    spec = draw.draw(specs())
    with tempfile.TemporaryDirectory() as name:
        values = written(Path(name), spec)
        array = opened(Path(name), limit=draw.draw(st.integers(0, 200)))
        assert (array.shape, array.dtype) == (values.shape, values.dtype)
        for _ in range(4):
            index = draw.draw(indexes(spec))
            read = array.read(*index)
            assert read.dtype == values.dtype
            assert np.array_equal(read, values[index])


def test_an_array_beside_an_integer_keeps_its_axis(tmp_path: Path) -> None:
    values = written(tmp_path, SPEC)
    some = np.array([4, 0, 4, 1])
    assert np.array_equal(opened(tmp_path).read(some, 3), values[some, 3])
    assert np.array_equal(opened(tmp_path).read(3, some), values[3, some])
    assert np.array_equal(opened(tmp_path).read(np.int64(3), some), values[3, some])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_chunk_is_refused_and_no_other(draw: st.DataObject) -> None:
    spec = draw.draw(specs())
    index = draw.draw(indexes(spec))
    victim = tuple(draw.draw(st.integers(0, length - 1)) for length in spec.shape)
    # Every element of the victim's chunk, and whether the index has one of them.
    mine = np.zeros(spec.shape, np.bool_)
    corner = [v // c * c for v, c in zip(victim, spec.chunk, strict=True)]
    mine[tuple(slice(k, k + c) for k, c in zip(corner, spec.chunk, strict=True))] = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = written(folder, spec)
        array = opened(folder)
        shard, before = chunk_of(victim, spec)
        turn_bit(folder / "a" / shard, before, draw.draw(st.integers(0, 100)), spec)
        if mine[index].any():
            with pytest.raises(DamagedIndexError, match="Array a is not what was published"):
                array.read(*index)
        else:
            assert np.array_equal(array.read(*index), values[index])
            shutil.rmtree(folder / "a")
            # What was found right is held.
            assert np.array_equal(array.read(*index), values[index])
            with pytest.raises(DamagedIndexError, match=r"Array a cannot be read \(No such file"):
                array.read()


def test_a_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    written(tmp_path, SPEC)
    array = opened(tmp_path)
    path = tmp_path / "a/c/0/0"
    for length in (0, 19, 20 * 6 - 5):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(DamagedIndexError, match="not what was published"):
            array.read(slice(0, 4), slice(0, 6))


def test_a_sound_shard_from_elsewhere_is_refused(tmp_path: Path) -> None:
    written(tmp_path, SPEC)
    array = opened(tmp_path)
    shutil.copyfile(tmp_path / "a/c/1/0", tmp_path / "a/c/0/0")
    with pytest.raises(DamagedIndexError):
        array.read(0, 0)


@pytest.mark.parametrize("index", [(5,), (-1,), (0, 7), (np.array([0, 5]),), (np.array([-1]),)])
def test_what_lies_outside_is_no_damage(tmp_path: Path, index: tuple[Any, ...]) -> None:
    written(tmp_path, SPEC)
    with pytest.raises(IndexError, match=r"^-?\d+ is not within an axis of [57]$"):
        opened(tmp_path).read(*index)


@pytest.mark.parametrize(
    "index",
    [
        (np.array([0]), np.array([1])),
        (0, 0, 0),
        (np.array([True, False, True, False, True]),),
        (np.array([[0, 1]]),),
        (np.array([0.0]),),
    ],
)
def test_other_kinds_of_indexes_are_refused(tmp_path: Path, index: tuple[Any, ...]) -> None:
    written(tmp_path, SPEC)
    with pytest.raises(IndexError, match=r"^an (index|array) "):
        opened(tmp_path).read(*index)


def test_small_integers_do_not_overflow(tmp_path: Path) -> None:
    spec = replace(SPEC, shape=(256, 1), shard=(64, 1), chunk=(8, 1))
    values = written(tmp_path, spec)
    assert opened(tmp_path).read(np.uint8(255), 0) == values[255, 0]
    assert opened(tmp_path).read(np.array([255], np.uint8)).tolist() == values[255:].tolist()


def test_an_array_without_elements_needs_no_chunk(tmp_path: Path) -> None:
    spec = ArraySpec("float16", (0, 7), ("y", "x"), (1, 7), (1, 7))
    write_array(tmp_path / "a", np.zeros((0, 7), np.float16), spec)
    for index in ((), (slice(None),), (np.zeros(0, np.int64),)):
        read = opened(tmp_path).read(*index)
        assert read.shape == (0, 7)
        assert read.dtype == np.float16


def test_not_a_number_and_halves_come_back(tmp_path: Path) -> None:
    spec = replace(SPEC, dtype="float16", order=(1, 0))
    values = np.linspace(-3, 3, 35).astype(np.float16).reshape(5, 7)
    values[2] = np.nan
    write_array(tmp_path / "a", values, spec)
    assert opened(tmp_path).read().tobytes() == values.tobytes()


def test_too_many_open_files_are_no_damage(tmp_path: Path) -> None:
    spec = replace(SPEC, shape=(40, 7), shard=(1, 7), chunk=(1, 7))
    values = written(tmp_path, spec)
    array = opened(tmp_path)
    before = set(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest free numbers are given out first: two of them are left.
    free = sorted(set(range(1000)) - set(map(int, before)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[2], limits[1]))
    try:
        with pytest.raises(NotReadError, match=r"Array a cannot be read now \(Too many open files"):
            array.read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert np.array_equal(array.read(), values)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_large_read_does_not_hold_all_twice(tmp_path: Path) -> None:
    spec = replace(SPEC, shape=(4096, 1024), shard=(64, 1024), chunk=(1, 256))
    values = written(tmp_path, spec)
    array = opened(tmp_path)
    tracemalloc.start()
    try:
        assert np.array_equal(array.read(), values)
        assert tracemalloc.get_traced_memory()[1] < 1.6 * values.nbytes
    finally:
        tracemalloc.stop()


def test_more_files_than_are_open_at_once(tmp_path: Path) -> None:
    spec = replace(SPEC, shape=(100, 7), shard=(1, 7), chunk=(1, 7))
    values = written(tmp_path, spec)
    assert np.array_equal(opened(tmp_path).read(slice(None), 3), values[:, 3])


def test_the_cache_holds_what_was_used_last() -> None:
    cache = ChunkCache(24)
    one, two, three, four = ((0, 0, rank) for rank in range(4))
    chunk = np.zeros(2, np.int32)
    cache.keep("a", {one: chunk, two: chunk, three: chunk})
    assert cache.find("a", [one]).keys() == {one}
    cache.keep("b", {four: chunk})
    assert cache.find("a", [one, two, three]).keys() == {one, three}
    assert cache.find("b", [one, four]).keys() == {four}
    # Twice the same takes no more room.
    cache.keep("b", {four: chunk})
    assert cache.find("a", [one, three]).keys() == {one, three}
    cache.keep("c", {one: np.zeros(7, np.int32)})
    assert cache.find("c", [one]) == {}


def test_many_threads_read_the_same(tmp_path: Path) -> None:
    spec = replace(SPEC, shape=(60, 8), shard=(8, 4), chunk=(2, 2))
    values = written(tmp_path, spec)
    array = opened(tmp_path, limit=200)

    def ask(number: int) -> bool:
        index = (slice(number % 7, None, 1 + number % 3), number % 8)
        return np.array_equal(array.read(*index), values[index])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))
