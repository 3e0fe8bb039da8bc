"""How many calls are in hand: the rest are refused at once instead of waiting without end.

Calls of a class wait for its threads, so that bursts are borne. Where more are refused than taken
it is no burst, and none waits: it would only wait longer for the same answer. A class that is so
crowded takes a call where a thread is free, and all of them together no more than there are cores:
an answer takes about as long as it would alone. Each gets one a second, whatever the others do. A
refused caller is told when to come again, as gRPC's retries understand it
(https://github.com/grpc/proposal/blob/master/A6-client-retries.md, pushback).
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_args

from vitscope.server.calls import Call, current, measured
from vitscope.server.errors import OverloadedError, StartError
from vitscope.server.going import run_for
from vitscope.server.questions import Cost

_T = TypeVar("_T")
Clock = Callable[[], float]
"""Seconds that never go back."""

_STREAMS = 8
"""Open streams for each call that may be in hand: most wait for their callers to read."""

_LOOK = 1.0
"""Seconds over which refused calls are held against those that were taken."""

_NICENESS = 5
"""Of threads that answer, beside the loop's."""

_COMING = 0.01
"""Seconds for which a call keeps its place while its request is received; it takes one."""

_REST = 0.05
"""Seconds for which a stream that rests keeps others of a crowded class from its thread."""

PUSHBACK_MS: Mapping[Cost, int] = {"light": 20, "scan": 500, "model": 1_000}
"""After how long a refused caller may come again: about as long as an answer takes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one class."""

    threads: int
    in_hand: int
    """Calls that are being answered or wait for a thread."""

    @property
    def streams(self) -> int:
        """Streams that may be open, in hand or between two of their parts."""
        return _STREAMS * self.in_hand


def limits_of(cores: int, in_hand: Mapping[str, int]) -> dict[Cost, Limits]:
    """Of all classes, where `in_hand` says nothing else of one; raises `StartError`."""
    few = max(1, cores // 2)
    limits: dict[Cost, Limits] = {
        # As many as are answered within some tens of milliseconds.
        "light": Limits(cores, 32 * cores),
        "scan": Limits(few, 16 * few),
        # Forwards are run one after the other; pictures are decoded beside them.
        "model": Limits(2, 8),
    }
    for name in in_hand.keys() - limits.keys():
        raise StartError(f"--in-hand names {name!r}; the classes are {', '.join(limits)}.")
    for cost, usual in limits.items():
        count = in_hand.get(cost, usual.in_hand)
        if count < 1:
            raise StartError(f"--in-hand {cost}={count} cannot be; give at least 1.")
        limits[cost] = Limits(min(usual.threads, count), count)
    return limits


def in_hand_from(text: str) -> dict[str, int]:
    """What `light=64,scan=4` says; raises `StartError` where it is no such text."""
    found: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, _, number = (each.strip() for each in part.partition("="))
        if not name or not re.fullmatch("[0-9]{1,9}", number):
            raise StartError(f"--in-hand has {part!r}, which is no CLASS=N, such as light=64.")
        found[name] = int(number)
    return found


class Crowd:
    """What classes may have in hand together, of which each refuses most calls."""

    def __init__(self, room: int) -> None:
        self.gates: list[Gate] = []
        self._room = room

    def is_full(self) -> bool:
        """Whether one more call would be too many."""
        busy = (min(gate.busy(), gate.limits.threads) for gate in self.gates if gate.crowded)
        return sum(busy) >= self._room


class Gate:
    """The threads of one class and the calls in hand; used by the event loop's thread alone."""

    def __init__(
        self,
        cost: Cost,
        limits: Limits,
        prepare: Callable[[], object],
        crowd: Crowd | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`prepare` is called in every thread before its first work; `crowd` is all classes'."""
        self.cost = cost
        self.limits = limits
        self.in_hand = 0
        self.streams = 0
        """That are open."""
        self.resting: dict[Stream, float] = {}
        """Those between two of their parts, and since when."""
        self._coming: dict[str, float] = {}
        """Calls whose requests are being received, by their ids, and since when."""
        self.refused = 0
        self.crowded = False
        """Whether most calls were refused lately."""
        self._clock = clock
        self._crowd = crowd or Crowd(limits.threads)
        self._crowd.gates.append(self)
        self._due = self._lately_taken = self._lately_refused = 0.0
        self._given_up: set[threading.Event] = set()
        """Of the work in hand; set where nobody waits for it any more."""
        begin = partial(_begin, prepare)
        self._executor = ThreadPoolExecutor(limits.threads, f"vitscope-{cost}", begin)

    async def run(self, work: Callable[[], _T], *, again: bool = False) -> _T:
        """What `work` gives in a thread; it is told where its caller goes away meanwhile.

        Raises `OverloadedError` where as many calls are in hand as may be; `again` for the next
        part of a stream, which was let in before and is not refused.
        """
        call = current.get()
        if not again:
            if call is not None:
                self._coming.pop(call.id, None)
            self.check()
            self._lately_taken += 1
        gone = threading.Event()
        loop = asyncio.get_running_loop()
        if call is not None:
            work = measured(call, work)
        # In the call's context, so that lines of the log know theirs.
        running = self._executor.submit(copy_context().run, run_for, gone, work)
        # Not before: what raises there is not in hand.
        self.in_hand += 1
        self._given_up.add(gone)
        ended = loop.create_future()
        running.add_done_callback(partial(self._left, loop, gone, ended))
        try:
            await ended
        except asyncio.CancelledError:
            # In hand until a thread has come to it, and the work has asked for its caller.
            gone.set()
            raise
        if running.cancelled():
            raise asyncio.CancelledError
        return running.result()

    def check(self) -> None:
        """Raise `OverloadedError` where one more call would be too many."""
        if self.is_full():
            raise self.one_too_many()

    def is_full(self) -> bool:
        """Whether one more call would be too many."""
        now = self._clock()
        if now >= self._due:
            # Of the time just before, and not of some burst long ago.
            recent = now < self._due + _LOOK
            self.crowded = recent and self._lately_refused > self._lately_taken
            self._lately_taken = self._lately_refused = 0
            self._due = now + _LOOK
        if self.crowded:
            others = self._lately_taken > 0 and self._crowd.is_full()
            return others or self.busy() >= self.limits.threads
        return self.in_hand >= self.limits.in_hand

    def busy(self) -> int:
        """Calls in hand, those that are coming, and streams whose next part is likely to be asked
        for at once.
        """
        now = self._clock()
        self._coming = {call: at for call, at in self._coming.items() if at > now - _COMING}
        soon = sum(since > now - _REST for since in self.resting.values())
        return self.in_hand + len(self._coming) + soon

    def expect(self, call: Call) -> None:
        """Keep a place of a crowded class for a call that comes here, for a moment."""
        if self.crowded:
            self._coming[call.id] = self._clock()

    def one_too_many(self) -> OverloadedError:
        """What a call is told that was one too many."""
        self._lately_refused += 1
        return self._too_many(
            f"The server has {self.in_hand} calls of the class {self.cost!r} in hand"
        )

    @contextmanager
    def stream(self) -> Iterator[Stream]:
        """An open stream, from its first part to its last; raises `OverloadedError`.

        Between its parts it is not in hand, and there would be no end of them otherwise.
        """
        stream = Stream(self)
        if self.streams >= self.limits.streams:
            raise self._too_many(
                f"The server has {self.streams} streams of the class {self.cost!r} open"
            )
        self.streams += 1
        try:
            yield stream
        finally:
            self.streams -= 1
            self.resting.pop(stream, None)

    def rests(self, stream: Stream) -> None:
        """The caller of an open stream reads what it got."""
        self.resting[stream] = self._clock()

    def _too_many(self, what: str) -> OverloadedError:
        self.refused += 1
        return OverloadedError(
            f"{what}, as many as it takes at a time; ask again in a moment.",
            PUSHBACK_MS[self.cost],
        )

    def _left(
        self,
        loop: asyncio.AbstractEventLoop,
        gone: threading.Event,
        ended: asyncio.Future[None],
        _: Future[Any],
    ) -> None:
        # No loop any more at the end of the server.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._leave, gone, ended)

    def _leave(self, gone: threading.Event, ended: asyncio.Future[None]) -> None:
        self.in_hand -= 1
        self._given_up.discard(gone)
        if not ended.done():
            ended.set_result(None)

    def give_up(self) -> None:
        """Take no more work, and tell all in hand that nobody waits for it."""
        for gone in self._given_up:
            gone.set()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Give up work in hand, and wait for it to notice."""
        self.give_up()
        self._executor.shutdown()


class Stream:
    """Work of one call that is done in parts, between which its caller reads."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._begun = False

    async def run(self, work: Callable[[], _T]) -> _T:
        """As `Gate.run`; of all parts the first alone is refused."""
        self._gate.resting.pop(self, None)
        result = await self._gate.run(work, again=self._begun)
        self._begun = True
        self._gate.rests(self)
        return result


def _begin(prepare: Callable[[], object]) -> None:
    # Refusals are told by the loop, and wait for no answers. Of a thread on Linux alone.
    if sys.platform == "linux":
        with suppress(OSError):
            nice = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, 0, min(19, nice))
    prepare()


class Gates:
    """One for each class."""

    def __init__(
        self, cores: int, in_hand: Mapping[str, int], prepare: Callable[[], object]
    ) -> None:
        """As `limits_of` and `Gate` take them; raises `StartError`."""
        limits, crowd = limits_of(cores, in_hand), Crowd(cores)
        self._gates = {cost: Gate(cost, limits[cost], prepare, crowd) for cost in get_args(Cost)}

    def __getitem__(self, cost: Cost) -> Gate:
        return self._gates[cost]

    def __iter__(self) -> Iterator[Gate]:
        return iter(self._gates.values())

    def refusal(self, costs: Sequence[Cost]) -> Callable[[], OverloadedError] | None:
        """What refuses a call that would be too many, whichever of `costs` it has."""
        if all(self[cost].is_full() for cost in costs):
            return self[costs[0]].one_too_many
        return None

    def close(self) -> None:
        """Give up all work in hand, and wait for it to notice."""
        for gate in self:
            gate.give_up()
        for gate in self:
            gate.close()
