"""The lock of an index, against real processes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from processes import WRITER, Holder

from vitscope.store import lock
from vitscope.store.lock import BusyIndexError, writing

WITH_WORKER = f"""{WRITER}
import subprocess
worker = subprocess.Popen(
    [sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=[descriptor]
)
"""


def test_a_second_process_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    with Holder(WRITER, tmp_path) as writer:
        with pytest.raises(BusyIndexError) as caught, writing(tmp_path):
            pytest.fail("two processes write the index")
        assert str(caught.value) == (
            f"{tmp_path} is being written by process {writer.pid}; wait for it or stop it."
        )
    with writing(tmp_path):
        pass


def test_the_lock_is_free_after_its_block_however_that_ends(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError
    with writing(tmp_path):
        assert (tmp_path / "lock").read_text().strip().isdecimal()
    assert (tmp_path / "lock").read_bytes() == b""
    with Holder(WRITER, tmp_path) as writer:
        assert (tmp_path / "lock").read_text() == f"{writer.pid}\n"


def test_a_killed_writer_leaves_a_free_lock(tmp_path: Path) -> None:
    with Holder(WRITER, tmp_path) as writer:
        writer.kill()
        with writing(tmp_path):
            pass


def test_a_worker_that_outlives_its_writer_is_waited_for(tmp_path: Path) -> None:
    order: list[str] = []

    def write() -> None:
        with writing(tmp_path):
            order.append("written")

    with Holder(WITH_WORKER, tmp_path) as writer:
        writer.kill()
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(0.3)
        order.append("worker ends")
        writer.release()
        thread.join(lock._LEFT_OVER_SECONDS)
    assert order == ["worker ends", "written"]


def test_a_worker_that_stays_is_named_by_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_LEFT_OVER_SECONDS", 0.1)
    with Holder(WITH_WORKER, tmp_path) as writer:
        writer.kill()
        with pytest.raises(BusyIndexError, match=f"process {writer.pid};"), writing(tmp_path):
            pytest.fail("written beside a worker")
