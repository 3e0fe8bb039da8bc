"""Real processes that hold what tests need held, until they are told to let go."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


class Holder:
    """A Python process that runs `code`, says when it is ready, and ends with its stdin.

    The code leaves what it holds in variables and gets `arguments` as `sys.argv[1:]`.
    """

    def __init__(self, code: str, *arguments: str | Path) -> None:
        code = f"import sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()\n"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("The process ended before it was ready.")

    @property
    def pid(self) -> int:
        """Its process number."""
        return self.process.pid

    def kill(self) -> None:
        """End it as `kill -9` does; what it started stays, and keeps its stdin."""
        self.process.kill()
        self.process.wait()

    def release(self) -> None:
        """Let it, and what inherited its stdin, end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        assert self.process.stdout is not None
        self.process.stdout.close()


WRITER = """
from pathlib import Path
from vitscope.store.lock import writing
held = writing(Path(sys.argv[1]))
descriptor = held.__enter__()
"""
"""Holds the lock of the index that is its argument."""

READER = """
import fcntl
file = open(sys.argv[1], "rb")
fcntl.flock(file, fcntl.LOCK_SH)
"""
"""Holds a shared lock on the file that is its argument, as a reader of a generation does."""

NFS_READER = READER.replace("flock", "lockf")
"""The same over NFS, whose client makes a lock on the bytes of the file of it."""


def children_of(parent: int) -> list[int]:
    """Processes that a server has started to serve."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            line = (entry / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(status[1]) == parent and "spawn_main" in line:
            found.append(int(entry.name))
    return sorted(found)


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    threads: int
    files: int
    resident: int
    """Bytes."""


def usage_of(pid: int) -> Usage:
    """What a process holds at the moment."""
    folder = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Usage(
        threads=int(fields["Threads"]),
        files=len(list((folder / "fd").iterdir())),
        resident=int(fields["VmRSS"].split()[0]) << 10,
    )
