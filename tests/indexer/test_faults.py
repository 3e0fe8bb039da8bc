"""A disk that is full or fails: one sentence, and the same command goes on once it is mended.

Both come from the kernel, so that they hold for Python and for TensorStore's own threads.
`VITSCOPE_FAULTS` says how many failures are provoked in all, half of either kind.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from children import Child, Children, Fault
from jobs import Course, Job, differing, phase, run_through, scratch, write_job
from pictures import write_pictures
from runs import files_of
from seccomp import KINDS, obstacle

FAULTS = int(os.environ.get("VITSCOPE_FAULTS", "12"))

_PAGE_KIB = 4
_ROOM_KIB = 1 << 17
_NAMESPACES = (("unshare", "-rm"), ("unshare", "-m"))


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as server:
        yield server


@pytest.fixture(scope="module")
def hidden() -> Iterator[Children]:
    """Children that see file systems mounted for them alone."""
    test = ("mount", "-t", "tmpfs", "none", "/mnt")
    said = []
    for wrapper in _NAMESPACES:
        try:
            done = subprocess.run([*wrapper, *test], capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"no unshare here: {error}")
        if done.returncode == 0:
            break
        said.append(done.stderr.strip())
    else:
        pytest.skip(f"no file system can be mounted here: {'; '.join(said)}")
    with Children(*wrapper) as server:
        yield server


@dataclass
class Record:
    """What became of the runs that were hurt."""

    course: Course
    stopped: Counter[str] = field(default_factory=Counter)
    """Runs that ended in the right sentence, by the phase they were in."""
    unhurt: int = 0
    """Runs that had nothing left to write."""
    wrong: list[str] = field(default_factory=list)

    def take(self, point: str, child: Child, out: Path, *, named: Path | None = None) -> bool:
        """Whether a hurt run failed; notes it where it did not do so in one sentence."""
        code, where = child.wait(), phase(out)
        if code == 0:
            self.unhurt += 1
            return False
        if fault := wrong_end(code, child.errors(), named or out):
            self.wrong.append(f"{point}, in {where}: {fault}")
        else:
            self.stopped[where] += 1
        return True

    def compare(self, point: str, child: Child, out: Path) -> None:
        """Note where the same command, with the disk mended, did not end in the same files."""
        if code := child.wait():
            self.wrong.append(f"{point}, resumed: exit code {code}, {child.errors()}")
        elif paths := differing(files_of(out), self.course.files):
            self.wrong.append(f"{point}, resumed: other bytes in {paths}")

    def check(self, kind: str) -> None:
        """Fail with all that was wrong, or where too few runs failed to show anything."""
        print(f"\n{kind}: stopped in {dict(self.stopped)}, unhurt {self.unhurt}", *self.wrong)
        assert not self.wrong, "\n".join(self.wrong)
        assert self.stopped.total() >= self.unhurt


def wrong_end(code: int, said: str, out: Path) -> str:
    """What is wrong with the end of a run that could not write; empty where nothing is."""
    lines = [
        line
        for line in said.splitlines()
        if line and not line.startswith(("images: ", "Busy: ", "merged "))
    ]
    if "Traceback" in said:
        calls = [line.strip() for line in lines if "vitscope/" in line and "line " in line]
        return f"exit code {code}, a traceback: {calls[-1]}: {lines[-1][:160]}"
    if code != 3 or len(lines) != 1:
        return f"exit code {code}, {lines}"
    if not lines[0].startswith(f"vitscope: Writing to {out} failed (") or lines[0][-1] != ".":
        return lines[0]
    return ""


@dataclass
class SmallDisks:
    """Mounts disks for the children alone, and looks into them from here."""

    children: Children
    job: Job
    place: Path

    @contextmanager
    def disk(self, limit: str) -> Iterator[Path]:
        """An empty disk of this `limit`, a mount option; its path is that of the children."""
        inside = self.place / limit
        inside.mkdir(exist_ok=True)
        self.children.call("mount", "-t", "tmpfs", "-o", limit, "disk", str(inside))
        try:
            yield inside
        finally:
            self.children.call("umount", str(inside))

    def seen(self, inside: Path) -> Path:
        """A path of the children as it is reached from here."""
        return self.children.root / inside.relative_to("/")

    def need(self) -> int:
        """KiB that a run takes at its fullest moment, as far as that was seen."""
        most = 0
        with self.disk(f"size={_ROOM_KIB}k") as disk:
            child = self.children.start(self.job.arguments(disk / "out"))
            while not child.ended_within(0):
                state = os.statvfs(self.seen(disk))
                most = max(most, (state.f_blocks - state.f_bfree) * state.f_frsize)
        return most // 1024

    def hurt(self, limit: str, record: Record) -> None:
        """Run on a disk of this limit; where that fails, make it larger and go on."""
        with self.disk(limit) as disk:
            arguments = self.job.arguments(disk / "out")
            seen = self.seen(disk / "out")
            # The sentence names the folder as the child knows it.
            if record.take(limit, self.children.start(arguments), seen, named=disk / "out"):
                room = f"remount,size={_ROOM_KIB}k,nr_inodes=0"
                self.children.call("mount", "-o", room, str(disk))
                record.compare(limit, self.children.start(arguments), seen)


def test_a_full_disk(hidden: Children, tmp_path: Path) -> None:
    job = write_job(tmp_path / "pictures")
    with scratch(tmp_path / "reference") as reference:
        record = Record(run_through(hidden, job, reference / "out"))
    disks = SmallDisks(hidden, job, tmp_path)
    need = disks.need()
    chance = random.Random("a full disk")
    for number in range(-(-FAULTS // 2)):
        match number % 4:
            case 0:
                limit = f"size={chance.randint(_PAGE_KIB, need // 2)}k"
            case 1:
                # Files can run out before bytes do.
                limit = f"nr_inodes={chance.randint(2, len(record.course.files) // 2)}"
            case _:
                limit = f"size={chance.randint(need // 2, need - 2 * _PAGE_KIB)}k"
        disks.hurt(limit, record)
    record.check(f"full disk, of the {need:,} KiB needed")


def test_a_read_only_disk(hidden: Children, tmp_path: Path) -> None:
    job = write_job(tmp_path / "pictures")
    write_pictures(tmp_path / "more", 40)
    disks = SmallDisks(hidden, job, tmp_path)
    with disks.disk(f"size={_ROOM_KIB}k") as disk:
        assert hidden.start(job.arguments(disk / "out")).wait() == 0
        hidden.call("mount", "-o", "remount,ro", str(disk))
        more = [*Job(tmp_path / "more").arguments(disk / "out"), "--append"]
        reason = os.strerror(errno.EROFS)
        mend = "mend that and run the same command again to go on."
        for arguments, said in (
            (job.arguments(disk / "new"), f"Writing to {disk / 'new'} failed ({reason}); {mend}"),
            (more, f"Writing to {disk / 'out'} failed ({reason}: lock); {mend}"),
            (
                ["prune", str(disk / "out")],
                f"{disk / 'out'} cannot be pruned: {reason} ({disk / 'out' / 'lock'}); mend that "
                "and prune it again.",
            ),
        ):
            child = hidden.start(arguments)
            assert child.wait() in (3, 4)
            assert child.errors().splitlines()[-1] == f"vitscope: {said}"
        for command in (["verify", "--deep"], ["info"]):
            assert hidden.start([*command, str(disk / "out")]).wait() == 0
        hidden.call("mount", "-o", "remount,rw", str(disk))
        assert hidden.start(more).wait() == 0


def test_a_failing_disk(children: Children, tmp_path: Path) -> None:
    if why := obstacle():
        pytest.skip(why)
    job = write_job(tmp_path / "pictures")
    chance = random.Random("a failing disk")
    with scratch(tmp_path) as space:
        course = run_through(children, job, space / "whole")
        record = Record(course)
        pace = 1.0
        for number in range(FAULTS // 2):
            kind = list(KINDS)[number % len(KINDS)]
            # Hardly anything is written while the model loads: little of that time will do.
            first = 0.8 * list(course.reached.values())[1]
            last = course.reached.get("done", course.whole)
            fault = Fault(kind=kind, after=pace * chance.uniform(first, last))
            point = f"{kind} after {fault.after:.2f} s"
            out = space / str(number)
            child = children.start(job.arguments(out), fault=fault)
            if record.take(point, child, out):
                record.compare(point, children.start(job.arguments(out)), out)
            else:
                # The run that was measured was slower, as where others use the machine too.
                pace *= 0.8
    record.check("failing disk")
