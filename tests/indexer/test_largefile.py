"""Files written past the cache have the bytes of those written through it, wherever they lie."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from vitscope.indexer import largefile
from vitscope.indexer.largefile import BLOCK, LargeFile

SIZES = (0, 1, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 777)


def some_bytes(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()


def written(path: Path, data: bytes, step: int) -> int:
    """Write `data` in pieces of up to `step` bytes; gives the size that was counted."""
    with path.open("wb") as file:
        large = LargeFile(file)
        for start in range(0, len(data), step):
            large.write(memoryview(data)[start : start + step])
        large.finish()
        os.fsync(file.fileno())
    return large.size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [999_983, BLOCK, 5 * BLOCK])
def test_bytes_come_back(tmp_path: Path, size: int, step: int) -> None:
    data = some_bytes(size)
    assert written(tmp_path / "file", data, step) == size
    assert (tmp_path / "file").read_bytes() == data


def test_a_file_in_memory(tmp_path: Path) -> None:
    """Not every Linux can write past the cache there."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        pytest.skip("there is no file system in memory")
    path, data = folder / f"vitscope-test-{os.getpid()}", some_bytes(SIZES[-1])
    try:
        written(path, data, 1 << 20)
        assert path.read_bytes() == data
    finally:
        path.unlink()


@pytest.mark.parametrize("after", [0, 1])
def test_a_file_system_that_refuses_it(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first block on, or only later."""
    refused: list[int] = []
    write, calls = os.write, []

    def picky(file: int, data: memoryview) -> int:
        calls.append(len(data))
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT and len(calls) > after:
            refused.append(len(data))
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(file, data)

    monkeypatch.setattr("os.write", picky)
    data = some_bytes(SIZES[-1])
    written(tmp_path / "file", data, 1 << 20)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == data
    assert len(refused) == 1


def test_a_block_that_was_written_in_part_before_it_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.write, []

    def short(file: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
            return write(file, data[:1000])
        if len(calls) == 2:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(file, data)

    monkeypatch.setattr("os.write", short)
    data = some_bytes(SIZES[-1])
    assert written(tmp_path / "file", data, 1 << 20) == len(data)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == data


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "file", some_bytes(2 * BLOCK), BLOCK)


def test_buffers_are_used_again(tmp_path: Path) -> None:
    largefile._spare.clear()
    for name in "abc":
        written(tmp_path / name, some_bytes(BLOCK + 5), BLOCK)
    assert len(largefile._spare) == 1
