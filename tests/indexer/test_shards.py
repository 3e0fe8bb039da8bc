"""Runs that share out an index's units, at the same time or not, and the merge that ends them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runs import files_of, keeping, keeping_line, open_files

from vitscope.client.cli import main
from vitscope.indexer.errors import OutputError
from vitscope.indexer.plan import Shard
from vitscope.indexer.run import index
from vitscope.indexer.sharded import index_shard, merge_shards
from vitscope.store.lock import BusyIndexError, holding, writing, writing_together

ROWS = 31
"""Eight units of four: three shards have three, three and two."""


def test_shards_at_the_same_time_and_a_merge_give_the_same_bytes(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    runs = []
    for number in range(3):
        # One of them does its units side by side besides.
        more = ("--shard", f"{number}/3", "--workers", "2" if number == 1 else "1")
        command = [sys.executable, "-m", "vitscope.client", *keeping_line(pictures, out, *more)]
        runs.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    told = [run.communicate(timeout=240)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert [said.partition(" is done")[0] for said in told] == [
        f"Shard {n}/3 of {out}" for n in range(3)
    ]
    assert [said.split(": ")[1].split(",")[0] for said in told] == ["3 units", "3 units", "2 units"]
    assert main(["merge", str(out)]) == 0
    assert capsys.readouterr().out.startswith("Published 000001-")
    assert files_of(out) == whole


def test_a_merge_names_what_is_missing_and_a_killed_shard_goes_on(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "index"
    index_shard(keeping(pictures, out), Shard(0, 3))
    command = [sys.executable, "-m", "vitscope.client"]
    run = subprocess.Popen([*command, *keeping_line(pictures, out, "--shard", "1/3")])
    while not (out / "building" / "units" / "000001.json").exists():
        assert run.poll() is None
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    index_shard(keeping(pictures, out), Shard(2, 3))
    (out / "building" / "units" / "000003" / "rows.json").write_bytes(b"")
    with pytest.raises(OutputError, match=r"units? of 8 .* must still be indexed \(number .*3.*\)"):
        merge_shards(out)
    for number in range(3):
        index_shard(keeping(pictures, out), Shard(number, 3))
    merge_shards(out)
    assert files_of(out) == whole


def test_one_command_without_shards_finishes_what_they_began(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    index_shard(keeping(pictures, tmp_path / "index"), Shard(1, 3))
    index(keeping(pictures, tmp_path / "index"))
    assert files_of(tmp_path / "index") == whole


def test_more_shards_than_units(pictures: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    counts = [
        index_shard(keeping(pictures, tmp_path / "index"), Shard(number, 10))
        for number in range(10)
    ]
    assert counts == [1] * 8 + [0] * 2
    merge_shards(tmp_path / "index")
    assert files_of(tmp_path / "index") == whole


def test_pictures_are_added_by_shards(pictures: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        index(replace(keeping(pictures, tmp_path / name), limit=14))
    more = keeping(pictures, tmp_path / "a")
    index(replace(more, append=True))
    for number in (1, 0):
        index_shard(replace(more, append=True, out=tmp_path / "b"), Shard(number, 2))
    merge_shards(tmp_path / "b")
    assert files_of(tmp_path / "b") == files_of(tmp_path / "a")


def test_who_may_write_beside_whom(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    mine = keeping(pictures, out)
    index_shard(mine, Shard(0, 3))
    with writing_together(out):
        index_shard(mine, Shard(1, 3))
        with pytest.raises(BusyIndexError, match="is being written by a run in shards; wait for"):
            index(mine)
        with pytest.raises(BusyIndexError):
            merge_shards(out)
    with writing(out), pytest.raises(BusyIndexError):
        index_shard(mine, Shard(2, 3))


def test_a_shard_is_done_by_one_process_at_a_time(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    index_shard(keeping(pictures, out), Shard(1, 2))
    shards = out / "building" / "shards"
    with holding(shards / "0-of-2"):
        for mine in (Shard(0, 2), Shard(0, 3)):
            with pytest.raises(OutputError, match=r"Shard 0/2 of .* is being done by another pro"):
                index_shard(keeping(pictures, out), mine)
        index_shard(keeping(pictures, out), Shard(1, 2))
    # Once nobody is at work, the rest may be shared out otherwise.
    index_shard(keeping(pictures, out), Shard(2, 3))
    assert [path.name for path in shards.iterdir()] == ["2-of-3"]


def test_shards_begin_one_after_the_other(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    index_shard(keeping(pictures, out), Shard(1, 2))
    command = [
        sys.executable,
        "-m",
        "vitscope.client",
        *keeping_line(pictures, out, "--shard", "0/2"),
    ]
    with holding(out / "building" / "beginning"):
        second = subprocess.Popen(command)
        # It has everything loaded as soon as it has the lock.
        while str(out / "lock") not in open_files(second.pid):
            assert second.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)
        assert not (out / "building" / "shards" / "0-of-2").exists()
    assert second.wait(timeout=60) == 0
    assert (out / "building" / "shards" / "0-of-2").exists()


def test_a_worker_left_over_keeps_its_shard(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    more = ("--shard", "0/2", "--workers", "2")
    command = [sys.executable, "-m", "vitscope.client", *keeping_line(pictures, out, *more)]
    first = subprocess.Popen(command, start_new_session=True)
    shard = str(out / "building" / "shards" / "0-of-2")
    # A child of its own, the server that forks the workers, has the file too until it executes.
    while not (workers := [pid for pid in holders(shard) if is_grandchild(pid, first.pid)]):
        assert first.poll() is None
        time.sleep(0.005)
    os.kill(workers[0], signal.SIGSTOP)
    try:
        first.kill()
        first.wait()
        with pytest.raises(OutputError, match=r"Shard 0/2 of .* is being done by another process"):
            index_shard(keeping(pictures, out), Shard(0, 2))
    finally:
        os.killpg(first.pid, signal.SIGKILL)


def holders(path: str) -> list[int]:
    """Processes that have the file open."""
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [process for process in processes if path in open_files(process)]


def is_grandchild(process: int, of: int) -> bool:
    return parent_of(parent_of(process)) == of


def parent_of(process: int) -> int:
    """The process that started it; 0 where it is gone."""
    try:
        said = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(said.rpartition(")")[2].split()[1])


def test_refusals_are_one_sentence(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    assert main(["merge", str(out)]) == 3
    assert capsys.readouterr().err == (
        f"vitscope: {out} has no units to merge; `vitscope index --shard` with --out {out} makes "
        "them.\n"
    )
    for text in ("3/3", "1", "-1/3", "a/b", "0/0"):
        assert main(keeping_line(pictures, out, f"--shard={text}")) == 2
        assert f"{text!r} is no shard; give its number, from 0" in capsys.readouterr().err
    index_shard(keeping(pictures, out), Shard(0, 3))
    with pytest.raises(OutputError, match=r"unfinished run with --top-k 3 \(not 2\)"):
        index_shard(replace(keeping(pictures, out), top_k=2), Shard(1, 3))
    plan = out / "building" / "plan.json"
    whole = json.loads(plan.read_bytes())
    for odd in ({"rows": "31"}, {"unit_rows": 0}, {"model": "x"}, {"layers": 3}, {"new": 1}):
        plan.write_text(json.dumps({**whole, **odd}))
        with pytest.raises(OutputError, match=r"is of another vitscope, or damaged; finish it"):
            merge_shards(out)
    plan.write_text(json.dumps(whole))
    index(keeping(pictures, out))
    with pytest.raises(OutputError, match=r"has nothing to merge: generation 000001-\w+ is publ"):
        merge_shards(out)


def test_a_merge_that_died_after_its_last_rename_is_completed(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    index_shard(keeping(pictures, out), Shard(0, 1))
    with monkeypatch.context() as patch:

        def dies(*_: object) -> None:
            raise KeyboardInterrupt

        # The pointer to the generation, which is in its place already.
        patch.setattr("vitscope.store.publish.sync_directory", dies)
        with pytest.raises(KeyboardInterrupt):
            merge_shards(out)
    assert not (out / "CURRENT").exists()
    with pytest.raises(OutputError, match=r"merged already; `vitscope merge .*` completes"):
        index_shard(keeping(pictures, out), Shard(0, 1))
    # A shard, which others may write beside, leaves that to the merge.
    assert not (out / "CURRENT").exists()
    merge_shards(out)
    assert files_of(out) == whole
