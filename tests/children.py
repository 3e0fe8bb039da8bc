"""`vitscope` in processes of its own, many times over and without the seconds torch takes to load.

This file run as a program is a fork server: it imports the indexer once and forks a child for
every command line asked for. A child is a process like any other, with its own session: it can be
killed, alone or with all that it started, and may spawn processes itself.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_LOADED = (
    "tensorstore",
    "torch",
    "faiss",
    "vitscope.indexer.run",
    "vitscope.indexer.commands.index",
)

_WAIT_SECONDS = 180.0
_POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """System calls of a child that fail from some moment on."""

    kind: str
    """A key of `seccomp.KINDS`."""
    after: float
    """Seconds from the child's start; 0 for all of its life."""
    error: int = errno.EIO
    """What they say."""


class Child:
    """One running or ended command."""

    def __init__(self, children: Children, pid: int, folder: Path) -> None:
        self.pid = pid
        self._children = children
        self._folder = folder
        self._code: int | None = None
        self._started = time.monotonic()

    def kill(self, *, group: bool = False) -> None:
        """End the process at once, or all of its group with it."""
        if self._code is not None and not group:
            return
        # Until it has been waited for, its number is not given to another process.
        try:
            (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def ended_within(self, seconds: float) -> bool:
        """Whether it ends by itself within so many seconds of its start."""
        if self._code is not None:
            return True
        left = self._started + seconds - time.monotonic()
        self._code = self._children.ask(do="wait", pid=self.pid, seconds=max(0.0, left))
        return self._code is not None

    def wait(self) -> int:
        """The exit code, or the signal that ended it as a negative number."""
        if self._code is None:
            code = self._children.ask(do="wait", pid=self.pid, seconds=_WAIT_SECONDS)
            if code is None:
                self.kill(group=True)
                raise TimeoutError(f"no end after {_WAIT_SECONDS:.0f} s: {self.errors()}")
            self._code = int(code)
        return self._code

    def output(self) -> str:
        """What it wrote to standard output."""
        return (self._folder / "out").read_text()

    def errors(self) -> str:
        """What it wrote to standard error."""
        return (self._folder / "err").read_text()


class Children:
    """The fork server, and what it has started; a context manager."""

    def __init__(self, *wrapper: str) -> None:
        """Start the server, behind the command `wrapper` where one is given."""
        self._scratch = tempfile.TemporaryDirectory(prefix="children")
        self._started: list[Child] = []
        command = [*wrapper, sys.executable, __file__]
        # One thread for each process: many small ones share the machine's few cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.ask(do="greet")

    @property
    def root(self) -> Path:
        """The file system as the children see it, with what was mounted for them alone."""
        return Path(f"/proc/{self._server.pid}/root")

    def start(self, arguments: Sequence[str], *, fault: Fault | None = None) -> Child:
        """Run `vitscope` with these arguments."""
        folder = Path(self._scratch.name) / str(len(self._started))
        folder.mkdir()
        hurt = fault and [fault.kind, fault.after, fault.error]
        pid = self.ask(do="start", arguments=list(arguments), folder=str(folder), fault=hurt)
        self._started.append(Child(self, pid, folder))
        return self._started[-1]

    def call(self, *command: str) -> None:
        """Run another program where the children run; raises where it fails."""
        if said := self.ask(do="call", command=command):
            raise RuntimeError(f"{' '.join(command)}: {said}")

    def ask(self, **request: Any) -> Any:
        """Put one question to the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with {self._server.wait()}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()
        self._scratch.cleanup()


def _serve() -> None:
    for name in _LOADED:
        importlib.import_module(name)
    # What is loaded stays shared: a child's collector need not touch it.
    gc.freeze()
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        match request.pop("do"):
            case "start":
                answer: Any = _start(**request)
                running.add(answer)
            case "wait":
                answer = _wait(**request)
                if answer is not None:
                    running.discard(request["pid"])
            case "call":
                done = subprocess.run(request["command"], capture_output=True, text=True)
                answer = done.returncode and (done.stderr or f"exit code {done.returncode}")
            case _:
                answer = None
        print(json.dumps(answer), flush=True)
    # The tests are over, or were themselves cut off.
    for pid in running:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os._exit(0)


def _start(arguments: list[str], folder: str, fault: tuple[str, float, int] | None) -> int:
    if pid := os.fork():
        return pid
    os.setsid()
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, name in enumerate((os.devnull, f"{folder}/out", f"{folder}/err")):
        os.dup2(os.open(name, modes[number], 0o644), number)
    os.closerange(3, 64)
    if fault:
        hurting = threading.Thread(target=_hurt, args=fault, daemon=True)
        hurting.start()
        if fault[1] == 0:
            hurting.join()
    from vitscope.client.cli import main

    try:
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    # Taking torch apart costs an interpreter more time than the whole job.
    os._exit(code)


def _hurt(kind: str, after: float, error: int) -> None:
    import seccomp

    filters = seccomp.program(kind, error)
    time.sleep(after)
    seccomp.install(filters)


def _wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(left, _POLL_SECONDS))


if __name__ == "__main__":
    _serve()
