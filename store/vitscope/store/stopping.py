"""Stopping on SIGINT and SIGTERM, also where a library swallows the exception they raise."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_asked: list[int] = []
"""Signals that came and have not ended the run yet."""


class Stopped(BaseException):
    """A signal asked the run to end; no handler of a library catches it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_status = 128 + signum
        """What a shell expects of a process that ended for this signal."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Let both signals raise `Stopped` inside the block; threads cannot, and need not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A shell has its background jobs ignore Ctrl-C; handlers of no Python code cannot be put back.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        _asked.clear()
        for number, handler in ours.items():
            signal.signal(number, handler)


def resumable(command: Callable[[], int]) -> int:
    """The exit code of a command that goes on where it was when it is run again, or of a signal."""
    try:
        with stoppable():
            return command()
    except Stopped as stop:
        print("vitscope: Stopped; the same command goes on from here.", file=sys.stderr)
        return stop.exit_status


def check() -> None:
    """Raise `Stopped` again where the first one went astray, in a destructor for one."""
    if _asked and threading.current_thread() is threading.main_thread():
        raise Stopped(_asked[0])


def _stop(signum: int, frame: object) -> None:
    _asked.append(signum)
    raise Stopped(signum)
