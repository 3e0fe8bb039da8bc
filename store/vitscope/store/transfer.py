"""Many requests at once on a thread of their own; signals and progress stay with the main one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from vitscope.store.progress import Progress

T = TypeVar("T")

_AT_ONCE = 16
_LOOK_SECONDS = 0.1


@dataclass(slots=True)
class Tally:
    """How far a transfer is, in bytes: written by its thread, read by the one that shows it."""

    total: int = 0
    moved: int = 0
    passed: int = 0
    """That were there before."""


def aside(work: Coroutine[Any, Any, T], tally: Tally | None = None, what: str = "") -> T:
    """Do `work` on an event loop of another thread, and show `tally` here as bytes `what`.

    Raises what `work` raises. A signal ends it at once, in the middle of a request: a call that
    waits for the network would keep the interpreter from seeing one.
    """
    begun = threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        begun.set()
        return await work

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, run())
        try:
            show = _Show(tally or Tally(), what)
            while not wait([done], _LOOK_SECONDS).done:
                show.update()
            show.finish()
            return done.result()
        except BaseException:
            begun.wait()
            loop, task = running[0]
            # It may have ended by itself, and its loop with it.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
            raise


async def each(jobs: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do `work` for every job, some at a time; raises the first failure, and leaves the rest."""
    left = iter(jobs)

    async def worker() -> None:
        for job in left:
            await work(job)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(worker())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


class _Show:
    """A tally's progress line, from when its total is known."""

    def __init__(self, tally: Tally, what: str) -> None:
        self._tally = tally
        self._what = what
        self._seen = Tally()
        self._progress: Progress | None = None

    def update(self) -> None:
        """Show what has been done since the last call, if it is time to."""
        if self._progress is None and self._tally.total:
            large = self._tally.total >= 10_000_000
            name, unit = ("MB", 1_000_000) if large else ("kB", 1_000)
            self._progress = Progress(f"{name} {self._what}", self._tally.total, unit=unit)
        moved, passed = self._tally.moved, self._tally.passed
        if self._progress:
            self._progress.skip(passed - self._seen.passed)
            self._progress.advance(moved - self._seen.moved)
            self._seen.moved, self._seen.passed = moved, passed

    def finish(self) -> None:
        """Show the last state, where there is anything to show."""
        self.update()
        if self._progress:
            self._progress.finish()
