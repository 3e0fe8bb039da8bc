"""A small indexing job for tests that interrupt and hurt it, and how far it has come."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from children import Child, Children
from pictures import BAD, write_pictures
from runs import files_of

PHASES = ("loading", "staging", "units", "merge", "publication", "removal", "done")

_SCRATCH_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """A command line but for its output folder."""

    pictures: Path
    options: tuple[str, ...] = ()

    def arguments(self, out: Path) -> list[str]:
        """The whole command line."""
        line = "index --model test_vit --random-weights --img-size 32 --batch-size 4 --top-k 3"
        data = ["--data", str(self.pictures), "--out", str(out)]
        kept = ["--retain-all", "blocks.1.mlp"]
        return [*line.split(), *data, *kept, "--unit-rows", "8", *self.options]


@dataclass(frozen=True, slots=True)
class Course:
    """An uninterrupted run: when it came to what, and what it left."""

    reached: dict[str, float]
    """Seconds from the start at which each of `PHASES` was seen to begin, in their order."""
    whole: float
    """Seconds until the process had ended."""
    files: dict[str, bytes]

    def length(self, phase: str) -> float:
        """Seconds that a phase took; 0 where it was too short to be seen."""
        times = [*self.reached.values(), self.whole]
        names = list(self.reached)
        if phase not in names:
            return 0.0
        place = names.index(phase)
        return times[place + 1] - times[place]


@contextmanager
def scratch(fallback: Path) -> Iterator[Path]:
    """An empty folder in memory where there is one: a kill loses nothing there that a disk keeps.

    All steps of a run wait for the disk otherwise, which takes most of its time.
    """
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    if not usable or shutil.disk_usage(memory).free < _SCRATCH_BYTES:
        yield fallback
        return
    with tempfile.TemporaryDirectory(prefix="vitscope", dir=memory) as folder:
        yield Path(folder)


def write_job(folder: Path, *options: str) -> Job:
    """A job over new pictures: 25 good ones and some that cannot be read."""
    write_pictures(folder, 25)
    for name, data in BAD.items():
        (folder / name).write_bytes(data)
    return Job(folder, options)


def run_through(children: Children, job: Job, out: Path) -> Course:
    """Run the job once and look on."""
    start = time.monotonic()
    child = children.start(job.arguments(out))
    reached: dict[str, float] = {}
    while not child.ended_within(0):
        now = phase(out)
        if all(PHASES.index(now) > PHASES.index(earlier) for earlier in reached):
            reached[now] = time.monotonic() - start
        time.sleep(0.001)
    whole = time.monotonic() - start
    assert child.wait() == 0, child.errors()
    return Course(reached, whole, files_of(out))


def wait_for(child: Child, out: Path, name: str) -> bool:
    """Whether the child came as far as the phase `name` before it ended."""
    while PHASES.index(phase(out)) < PHASES.index(name):
        if child.ended_within(0):
            return False
        time.sleep(0.001)
    return True


def differing(files: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Paths at which two trees differ; short where all bytes would not be."""
    return sorted(path for path in files | other if files.get(path) != other.get(path))


def phase(out: Path) -> str:
    """How far the run that writes `out` has come, by what is there: one of `PHASES`."""
    work = out / "building"
    if (out / "CURRENT").exists():
        left = work.exists() or (out / ".building.removed").exists()
        return "removal" if left else "done"
    staged = work / "staged"
    try:
        layers = len(list(staged.glob("arrays.zarr/layers/*/")))
        merged = any(staged.glob("arrays.zarr/layers/*/top_rows_*"))
        searched = [path.name for path in staged.glob("faiss/*.faiss")]
        neighbours = sum(not name.endswith(".patches.faiss") for name in searched)
        units = any((work / "units").glob("*"))
        generations = any((out / "generations").glob("*"))
    except FileNotFoundError:
        # Renamed while it was read, as happens at one point only.
        return "publication"
    # The neighbours of the last layer are what the merge ends with.
    if generations or (layers and neighbours == layers):
        return "publication"
    if merged:
        return "merge"
    # Between the arrays of all units and the first unit, worker processes load their models.
    return "units" if units else "staging" if staged.exists() else "loading"
