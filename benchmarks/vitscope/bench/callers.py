"""A server and its callers on cores of their own; callers note what becomes of calls."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

CONNECTIONS = 8
TIMEOUT = 30.0
HEALTH_EVERY = 0.1
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),
]


@dataclass(frozen=True)
class Call:
    """One that can be made."""

    path: str
    request: bytes
    cost: str
    streamed: bool


@dataclass
class Made:
    """Calls that were made, by the names of their status and class."""

    milliseconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    late: list[float] = field(default_factory=list)
    """Milliseconds by which calls were begun later than meant."""
    most_at_once: int = 0

    def note(self, code: str, cost: str, taken: float) -> None:
        """A call has ended."""
        self.milliseconds.setdefault((code, cost), []).append(taken)

    def of(self, code: str, cost: str = "") -> list[float]:
        """Milliseconds of all with a status, of one class or all."""
        found = self.milliseconds.items()
        return [ms for (a, b), taken in found if a == code and cost in ("", b) for ms in taken]

    @property
    def codes(self) -> dict[str, int]:
        """How many ended with each status."""
        counted: Counter[str] = Counter()
        for (code, _), taken in self.milliseconds.items():
            counted[code] += len(taken)
        return dict(counted)


def cores() -> tuple[set[int], set[int]]:
    """The server's and the callers'."""
    mine = sorted(os.sched_getaffinity(0))
    return set(mine[:-1]) or set(mine), {mine[-1]}


@contextmanager
def serving(index: Path, workers: int) -> Iterator[tuple[str, int]]:
    """A server process on its cores: its address and process number."""
    command = [sys.executable, "-m", "vitscope.client", "serve", str(index)]
    command += ["--listen", "127.0.0.1:0", "--workers", str(workers)]
    before = os.sched_getaffinity(0)
    ours, theirs = cores()
    os.sched_setaffinity(0, ours)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # Nothing but the server is to run there.
    os.sched_setaffinity(0, theirs)
    with process:
        try:
            yield (process.stdout or io.StringIO()).readline().split()[-1], process.pid
        finally:
            process.terminate()
            os.sched_setaffinity(0, before)


def start(stack: ExitStack, work: Any, *given: Any) -> Connection:
    """Have a process on the callers' core do something, which it then sends."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_on_core, args=(there, work, *given), daemon=True)
    process.start()
    stack.callback(process.terminate)
    return here


def run(work: Any, *given: Any) -> Any:
    """What a process on the callers' core finds."""
    with ExitStack() as stack:
        return start(stack, work, *given).recv()


def _on_core(there: Connection, work: Any, *given: Any) -> None:
    os.sched_setaffinity(0, cores()[1])
    # Or it would be gone through while calls are made, a quarter of a second.
    gc.freeze()
    there.send(asyncio.run(work(*given)))


class Callers:
    """Makes calls over a few connections."""

    def __init__(self, address: str) -> None:
        self._channels = [grpc.aio.insecure_channel(address, OPTIONS) for _ in range(CONNECTIONS)]
        self._methods: dict[tuple[int, str], Any] = {}
        self._numbers = itertools.count()

    async def connect(self) -> None:
        """Wait until every connection stands: what is begun before would come all at once then."""
        ready = (channel.channel_ready() for channel in self._channels)
        await asyncio.wait_for(asyncio.gather(*ready), TIMEOUT)

    async def call(self, call: Call, made: Made) -> None:
        """Make one, on the next connection, and note it there."""
        begun = time.perf_counter()
        method = self._method(next(self._numbers) % CONNECTIONS, call)
        try:
            reply = method(call.request, timeout=TIMEOUT)
            if call.streamed:
                async for _ in reply:
                    pass
            else:
                await reply
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        made.note(code, call.cost, (time.perf_counter() - begun) * 1e3)

    def _method(self, number: int, call: Call) -> Any:
        key = number, call.path
        if key not in self._methods:
            channel = self._channels[number]
            make = channel.unary_stream if call.streamed else channel.unary_unary
            self._methods[key] = make(call.path)
        return self._methods[key]

    async def close(self) -> None:
        """End the connections."""
        for channel in self._channels:
            await channel.close()


async def closed(address: str, calls: Sequence[Call], callers: int, seconds: float) -> Made:
    """So many callers, each of whom asks again when it has its answer."""
    some, queue, made = Callers(address), itertools.cycle(calls), Made()
    await some.connect()
    end = time.perf_counter() + seconds

    async def ask() -> None:
        while time.perf_counter() < end:
            await some.call(next(queue), made)

    await asyncio.gather(*(ask() for _ in range(callers)))
    await some.close()
    return made


async def flooded(
    address: str, calls: Sequence[Call], rate: float, first: float, seconds: float
) -> tuple[Made, Made]:
    """Calls at random moments, so many a second, whatever becomes of those before: what becomes of
    those that are due in the first seconds, and of those in the seconds after them.
    """
    some, chance = Callers(address), random.Random(1)
    await some.connect()
    order = list(calls)
    chance.shuffle(order)
    queue = itertools.cycle(order)
    open_: set[asyncio.Task[None]] = set()
    onset, loaded = Made(), Made()
    start, due = time.perf_counter(), 0.0
    while due < first + seconds:
        now = time.perf_counter() - start
        if due > now:
            await asyncio.sleep(due - now)
        while due < first + seconds and due <= (now := time.perf_counter() - start):
            made = onset if due < first else loaded
            made.late.append((now - due) * 1e3)
            task = asyncio.create_task(some.call(next(queue), made))
            open_.add(task)
            task.add_done_callback(open_.discard)
            made.most_at_once = max(made.most_at_once, len(open_))
            due += chance.expovariate(rate)
        await asyncio.sleep(0)
    await asyncio.gather(*open_)
    await some.close()
    return onset, loaded


async def probe(address: str, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of health checks, by status."""
    found: dict[str, list[float]] = {}
    end = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(address, OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < end:
            begun = time.perf_counter()
            try:
                reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                code = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            taken = time.perf_counter() - begun
            found.setdefault(code, []).append(taken * 1e3)
            await asyncio.sleep(max(0.0, HEALTH_EVERY - taken))
    return found
