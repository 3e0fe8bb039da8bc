"""A gate of one class, and calls that last until they are told to end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from threading import Event

import pytest

from vitscope.server.admission import Clock, Crowd, Gate, Limits
from vitscope.server.errors import OverloadedError

PATIENCE = 60.0


class Hand:
    """A clock's, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def gate(
    threads: int, in_hand: int, crowd: Crowd | None = None, clock: Clock = time.monotonic
) -> Gate:
    return Gate("scan", Limits(threads, in_hand), lambda: None, crowd, clock)


def wait(until: Event) -> str:
    assert until.wait(PATIENCE)
    return "done"


async def settled(what: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE * 100)):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came about")


class Asking:
    """Calls of one class that last until they are told to end."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._over = Event()
        self._running: list[asyncio.Task[str]] = []

    async def once(self) -> bool:
        """Whether one more is taken."""
        refused = self.gate.refused
        task = asyncio.create_task(self.gate.run(partial(wait, self._over)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self.gate.refused > refused:
            with pytest.raises(OverloadedError):
                await task
            return False
        self._running.append(task)
        return True

    async def taken(self) -> int:
        """How many are in hand when one more is too many."""
        while await self.once():
            pass
        return self.gate.in_hand

    async def answered(self) -> None:
        """Let all end."""
        self._over.set()
        await asyncio.gather(*self._running)
        self._over.clear()
        self._running.clear()


async def crowd(hand: Hand, *some: Asking) -> None:
    """Have classes that take four refuse most of what comes, until they are crowded."""
    for each in some:
        assert await each.taken() == 4
        for _ in range(6):
            assert not await each.once()
    hand.now += 1
    for each in some:
        assert not await each.once()
        await each.answered()
