"""Units on a Ray cluster of several node processes, one of which is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from runs import files_of, keeping, keeping_line, open_files

from vitscope.client.cli import main
from vitscope.indexer.cluster import Actor
from vitscope.indexer.errors import OutputError
from vitscope.indexer.job import prepare
from vitscope.indexer.run import index
from vitscope.indexer.work import Work

ROWS = 121
NODES = 3


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without room for work, and nodes with room for one actor each."""
    made = Cluster()
    try:
        for room in (0, *[1] * NODES):
            add_node(made, room)
        yield made
    finally:
        made.shutdown()  # type: ignore[no-untyped-call]


def add_node(cluster: Cluster, room: int) -> None:
    """Ray gives up on a node that takes half a minute to start, as on a busy machine."""
    for _ in range(4):
        try:
            cluster.add_node(num_cpus=room)
            return
        except Exception as error:
            told = error
    raise told


def started(pictures: Path, out: Path, cluster: Cluster) -> subprocess.Popen[str]:
    line = keeping_line(pictures, out, "--ray", cluster.address)
    command = [sys.executable, "-m", "vitscope.client.cli", *line]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def at_work(out: Path, run: subprocess.Popen[str]) -> int:
    """Wait until some units are done; gives the process of an actor that does others."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()
        if len(list((out / "building/units").glob("*.json"))) > 2:
            for process in map(int, filter(str.isdecimal, os.listdir("/proc"))):
                if any("building/actors/" in path for path in open_files(process)):
                    return process
        time.sleep(0.05)
    raise AssertionError("no actor came to work")


def parent(process: int) -> int:
    """The process that started this one."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_killed_node_changes_nothing(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path, cluster: Cluster
) -> None:
    out = tmp_path / "index"
    run = started(pictures, out, cluster)
    actor = at_work(out, run)
    # What starts and ends all workers of a node.
    raylet = parent(actor)
    # So that it has units in hand when it goes with its node.
    os.kill(actor, signal.SIGSTOP)
    for process in (raylet, actor):
        os.kill(process, signal.SIGKILL)
    said, errors = run.communicate(timeout=240)
    assert run.returncode == 0, errors
    assert "a worker was lost" in errors
    assert f"{ROWS}/{ROWS} (100%)" in errors
    assert said.startswith("Published ")
    assert files_of(out) == whole


def test_a_killed_run_is_taken_up_without_the_cluster(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path, cluster: Cluster
) -> None:
    """Its actors may write a little longer; who goes on waits for them."""
    out = tmp_path / "index"
    run = started(pictures, out, cluster)
    at_work(out, run)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    index(keeping(pictures, out))
    assert files_of(out) == whole


def test_a_stopped_run_says_so(pictures: Path, tmp_path: Path, cluster: Cluster) -> None:
    out = tmp_path / "index"
    run = started(pictures, out, cluster)
    at_work(out, run)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM, errors
    assert errors.splitlines()[-1] == "vitscope: Stopped; the same command goes on from here."


def test_a_stop_that_ray_takes_for_its_own_fault_is_a_stop(
    pictures: Path,
    tmp_path: Path,
    cluster: Cluster,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by chance, where the signal comes between a result and its return."""

    def wait(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as stop:
            raise SystemError("wait returned a result with an exception set") from stop

    monkeypatch.setattr(ray, "wait", wait)
    out = tmp_path / "index"
    line = keeping_line(pictures, out, "--ray", cluster.address, "--threads", "1")
    assert main(line) == 128 + signal.SIGTERM
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "vitscope: Stopped; the same command goes on from here."


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--ray", "127.0.0.1:1"], "There is no Ray cluster at 127.0.0.1:1"),
        (["--ray", "ray://127.0.0.1:1"], "There is no Ray cluster at ray://127.0.0.1:1"),
        (["--ray", "nowhere"], "There is no Ray cluster at nowhere"),
        (["--ray", "local", "--shard", "0/2"], "--shard and --ray share a run out in two ways"),
    ],
)
def test_a_wrong_cluster_is_told(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert main(keeping_line(pictures, tmp_path / "index", *given)) == 3
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith(f"vitscope: {said}")
    assert errors[-1].endswith(".")


def test_an_actor_that_was_given_up_does_not_begin(pictures: Path, tmp_path: Path) -> None:
    work = begun(pictures, tmp_path / "index")
    with work.gone("7") as gone:
        assert gone
        with pytest.raises(OutputError, match="was given up"), work.actor("7"):
            pass
    with work.actor("7"), work.gone("7") as gone:
        assert not gone


def test_a_folder_that_is_not_shared_is_told(pictures: Path, tmp_path: Path) -> None:
    work = Work(tmp_path / "elsewhere", begun(pictures, tmp_path / "index").plan)
    with pytest.raises(OutputError, match="not on every node"), work.actor("7"):
        pass


def begun(pictures: Path, out: Path) -> Work:
    """The working folder of a run that has just begun."""
    out.mkdir()
    work = Work(out, prepare(keeping(pictures, out)).plan)
    work.begin()
    return work


def test_an_actor_that_cannot_begin_says_why(pictures: Path, tmp_path: Path) -> None:
    """Whatever it is: the run would wait for it for ever."""
    options = keeping(pictures, tmp_path / "index")
    (tmp_path / "index" / "building").mkdir(parents=True)
    (tmp_path / "index" / "building" / "actors").write_text("no folder")
    plan = prepare(options).plan
    actor = Actor("0-0", str(tmp_path), options, plan.to_json(), ())
    (error,) = actor.hear()
    assert isinstance(error, NotADirectoryError)
