"""Death by SIGKILL at random moments of a run: the same command goes on to the same bytes.

`VITSCOPE_KILLS` says how many kills there are for each number of workers.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from children import Child, Children
from jobs import (
    PHASES,
    Course,
    Job,
    differing,
    phase,
    run_through,
    scratch,
    wait_for,
    write_job,
)
from runs import files_of

from vitscope.store.verify import verify

KILLS = int(os.environ.get("VITSCOPE_KILLS", "0"))
WORKERS = {1: 20, 2: 2, 3: 2}
"""Numbers of worker processes, and how many kills each gets where nobody asks for more."""

AIMS = ("units", "merge", "publication", "removal")
"""Phases that get an eighth of the kills each beside those that fall on them by chance."""

DONE = "holds a published index already"


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as server:
        yield server


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Path]:
    with scratch(tmp_path) as folder:
        yield folder


@dataclass
class Killer:
    """Kills runs of one job, each at a moment of its own, and counts where the kills fell."""

    children: Children
    job: Job
    course: Course
    chance: random.Random
    fell: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    """Resumed commands that found all done but the removal of the working folder."""
    late: int = 0
    """Runs that ended before their kill."""

    @property
    def kills(self) -> int:
        """Processes that were really killed."""
        return self.fell.total()

    def torment(self, out: Path, times: int) -> list[str]:
        """Kill so many runs in `out` and let the next one end; gives the phases they were in."""
        done = 0.0
        phases: list[str] = []
        for _ in range(times):
            start = time.monotonic()
            child = self.children.start(self.job.arguments(out))
            self._wait_for_the_moment(child, out, done)
            child.kill(group=self.chance.random() < 0.5)
            if child.wait() != -signal.SIGKILL:
                self._check_end(child, out)
                self.late += 1
                return phases
            phases.append(phase(out))
            self.fell[phases[-1]] += 1
            # What the next run has to do begins about where this one was.
            worked = time.monotonic() - start - self.course.length("loading")
            done = min(done + max(0.0, worked), self.course.whole)
        child = self.children.start(self.job.arguments(out))
        child.wait()
        self._check_end(child, out)
        return phases

    def _wait_for_the_moment(self, child: Child, out: Path, done: float) -> None:
        """Half of the moments are any of the run's; the others lie in a phase aimed at."""
        if self.chance.random() < 0.5:
            left = self.course.whole - done
            child.ended_within(self.chance.uniform(0.0, max(left, self.course.length("loading"))))
            return
        name = self.chance.choice(AIMS)
        if wait_for(child, out, name):
            time.sleep(self.chance.uniform(0.0, self.course.length(name)))

    def _check_end(self, child: Child, out: Path) -> None:
        """It published; or it found that done, and says nothing but that."""
        if code := child.wait():
            assert code == 3, child.errors()
            assert DONE in child.errors()
            assert len(child.errors().splitlines()) == 1
            assert (out / "CURRENT").exists()
            self.refused += 1

    def __str__(self) -> str:
        where = ", ".join(f"{name} {self.fell[name]}" for name in PHASES)
        return (
            f"{self.kills} kills ({where}); {self.refused} resumed commands found all done, "
            f"{self.late} runs ended before their kill; "
            f"a whole run took {self.course.whole:.2f} s"
        )


@pytest.mark.parametrize("workers", WORKERS)
def test_killed_runs_end_in_the_same_bytes(
    children: Children, tmp_path: Path, space: Path, workers: int
) -> None:
    wanted = KILLS or WORKERS[workers]
    job = write_job(tmp_path / "pictures", *worker_options(children, workers))
    course = run_through(children, job, space / "whole")
    killer = Killer(children, job, course, random.Random(f"{workers} workers"))
    for number in range(3 * wanted):
        if killer.kills >= wanted:
            break
        out = space / f"killed{number}"
        phases = killer.torment(out, min(killer.chance.randint(1, 3), wanted - killer.kills))
        files = files_of(out)
        # What no reader looks at still names a process that was killed with all else done.
        files["lock"] = course.files["lock"]
        assert differing(files, course.files) == [], f"killed in {phases}"
        assert verify(out, deep=True).problems == (), f"killed in {phases}"
        shutil.rmtree(out)
    print(f"\n{workers} worker(s): {killer}")
    assert killer.kills >= wanted, str(killer)
    assert len(killer.fell) > min(2, wanted // 8), f"all kills fell in one phase: {killer}"


def worker_options(children: Children, workers: int) -> list[str]:
    """Options for so many worker processes; skips where the command has none."""
    if workers == 1:
        return []
    help_ = children.start(["index", "--help"])
    help_.wait()
    if "--workers" not in help_.output():
        pytest.skip("`vitscope index` has no --workers")
    return ["--workers", str(workers), "--threads", "1"]
