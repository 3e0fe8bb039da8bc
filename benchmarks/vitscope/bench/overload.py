"""What becomes of a server that is asked ten times what it can answer.

    python -m vitscope.bench.overload [--minutes N] [--quick] [--json FILE]

Calls are of every kind that `questions` has, one as often as the other, over an index of drawn
scenes with a layer kept whole. The server, as `vitscope serve` starts it, has all cores but the
last; callers have that one, in processes of their own, and do not try again. First one caller asks
after the other: unloaded. Then as many as it takes until more are not answered faster: capacity.
Then calls are begun at random moments, ten times as many a second as that, whatever becomes of
those before, and health is asked for ten times a second. Ten times the calls cost the callers'
core ten times as much too; `late_p99_ms` says by how much calls were begun later than meant.

Refused calls are to be told so within 20 ms (99th percentile), accepted ones to take less than
twice what they take unloaded (99th percentiles of all kinds together), health always to answer,
memory to grow by less than a tenth from a tenth of the time on.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vitscope.bench import arguments
from vitscope.bench.questions import make_index, questions
from vitscope.bench.record import Row, write
from vitscope.bench.servers import SERVICE
from vitscope.server.questions import QUESTIONS

PACKAGES = ("vitscope", "numpy", "tensorstore", "faiss-cpu", "grpcio")
TIMES = 10
CALLERS = (2, 4, 8)
"""That ask without pause when capacity is measured; fewer than are refused."""
CONNECTIONS = 8
TIMEOUT = 30.0
HEALTH_EVERY = 0.1
MEMORY_EVERY = 5.0
"""Counting pages takes the server's memory map from it for some milliseconds."""
REFUSED_MS, SLOWER, GROWTH = 20.0, 2.0, 0.1
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


def main() -> int:
    """Measure, print, write the result file; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=10.0, help="of overload")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="shorter rounds")
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    # Of fewer pictures it could answer more than callers can ask ten times as often.
    pictures, seconds = 2_000, 3.0 if args.quick else 20.0
    with tempfile.TemporaryDirectory() as name:
        make_index(Path(name), pictures)
        row = measured(Path(name) / "index", pictures, args.workers, seconds, args.minutes * 60)
    show(row)
    if args.json:
        quick = " --quick" if args.quick else ""
        command = f"python -m vitscope.bench.overload --minutes {args.minutes:g}{quick}"
        write(args.json, f"{command} --workers {args.workers}", [row], PACKAGES)
    return 0 if all(row["held"].values()) else 1


def measured(index: Path, pictures: int, workers: int, seconds: float, long: float) -> Row:
    """The row of the result."""
    calls = calls_of(pictures)
    with serving(index, workers) as (address, process), ExitStack() as stack:
        # Everything was read once.
        run(closed, address, calls, 2, seconds / 2)
        unloaded = run(closed, address, calls, 1, seconds)
        speeds = {}
        for callers in CALLERS:
            found = run(closed, address, calls, callers, seconds / 2)
            speeds[callers] = len(found.of("OK")) / (seconds / 2)
        capacity = max(speeds.values())
        memory: list[int] = []
        told = start(stack, probe, address, long)
        flood = start(stack, flooded, address, calls, TIMES * capacity, long)
        end = time.monotonic() + long
        while time.monotonic() < end:
            memory.append(resident(process))
            time.sleep(MEMORY_EVERY)
        loaded, health = flood.recv(), told.recv()
        # As if nothing had been.
        after = run(closed, address, calls, 1, seconds)
    return row_of(workers, long, speeds, unloaded, loaded, after, health, memory)


def calls_of(pictures: int) -> list[Call]:
    """All kinds of questions in turn, each time about something else."""
    kinds = []
    for question in questions(pictures):
        method = SERVICE.methods_by_name[question.method]
        cost = QUESTIONS[question.method].cost
        kinds.append(
            [
                Call(
                    f"/{SERVICE.full_name}/{question.method}",
                    request.SerializeToString(),
                    cost(request) if callable(cost) else cost,
                    method.server_streaming,
                )
                for request in question.requests
            ]
        )
    longest = max(map(len, kinds))
    return [kind[number % len(kind)] for number in range(longest) for kind in kinds]


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
    there.send(asyncio.run(work(*given)))


class Callers:
    """Makes calls over a few connections and notes what becomes of them."""

    def __init__(self, address: str) -> None:
        self._channels = [grpc.aio.insecure_channel(address, OPTIONS) for _ in range(CONNECTIONS)]
        self._methods: dict[tuple[int, str], Any] = {}
        self._numbers = itertools.count()
        self.made = Made()

    async def call(self, call: Call) -> None:
        """Make one, on the next connection."""
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
        self.made.note(code, call.cost, (time.perf_counter() - begun) * 1e3)

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
    some, queue = Callers(address), itertools.cycle(calls)
    end = time.perf_counter() + seconds

    async def ask() -> None:
        while time.perf_counter() < end:
            await some.call(next(queue))

    await asyncio.gather(*(ask() for _ in range(callers)))
    await some.close()
    return some.made


async def flooded(address: str, calls: Sequence[Call], rate: float, seconds: float) -> Made:
    """Calls at random moments, so many a second, whatever becomes of those before."""
    some, chance = Callers(address), random.Random(1)
    order = list(calls)
    chance.shuffle(order)
    queue = itertools.cycle(order)
    open_: set[asyncio.Task[None]] = set()
    due = time.perf_counter()
    end = due + seconds
    while due < end:
        now = time.perf_counter()
        if due > now:
            await asyncio.sleep(due - now)
        while due <= time.perf_counter():
            some.made.late.append((time.perf_counter() - due) * 1e3)
            task = asyncio.create_task(some.call(next(queue)))
            open_.add(task)
            task.add_done_callback(open_.discard)
            due += chance.expovariate(rate)
        some.made.most_at_once = max(some.made.most_at_once, len(open_))
        await asyncio.sleep(0)
    await asyncio.gather(*open_)
    await some.close()
    return some.made


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


def resident(process: int) -> int:
    """Bytes of a process and those that it has started; what they share counts once."""
    total, waiting = 0, [process]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        rollup = (folder / "smaps_rollup").read_text()
        (line,) = (line for line in rollup.splitlines() if line.startswith("Pss:"))
        total += int(line.split()[1]) << 10
        for thread in (folder / "task").iterdir():
            # Threads come and go.
            with suppress(FileNotFoundError, ProcessLookupError):
                waiting += map(int, (thread / "children").read_text().split())
    return total


def row_of(
    workers: int,
    seconds: float,
    speeds: Mapping[int, float],
    unloaded: Made,
    loaded: Made,
    after: Made,
    health: Mapping[str, Sequence[float]],
    memory: Sequence[int],
) -> Row:
    """One row of the result."""
    answered = [ms for code, taken in health.items() if code == "SERVING" for ms in taken]
    warm = memory[len(memory) // 10 :]
    part = max(1, len(warm) // 10)
    first, last = (statistics.median(some) for some in (warm[:part], warm[-part:]))
    ours: dict[str, Any] = {
        "unloaded": summaries(unloaded, "OK"),
        "accepted": summaries(loaded, "OK"),
        "refused": summaries(loaded, "RESOURCE_EXHAUSTED"),
        "after": summaries(after, "OK"),
    }
    slower = ours["accepted"]["all"]["p99_ms"] / ours["unloaded"]["all"]["p99_ms"]
    growth = last / first - 1
    return {
        "what": f"{TIMES} times overload",
        "workers": workers,
        "cores": [sorted(some) for some in cores()],
        "seconds": seconds,
        "capacity_per_second": max(speeds.values()),
        "answered_per_second_by_callers": {str(many): speed for many, speed in speeds.items()},
        "begun_per_second": sum(loaded.codes.values()) / seconds,
        "accepted_per_second": loaded.codes.get("OK", 0) / seconds,
        "codes": loaded.codes,
        "most_at_once": loaded.most_at_once,
        "late_p99_ms": percentile(loaded.late),
        **ours,
        "accepted_p99_to_unloaded": slower,
        "health": {**summary(answered), "codes": {code: len(ms) for code, ms in health.items()}},
        "memory_MB": {
            "first": first / 1e6,
            "last": last / 1e6,
            "most": max(memory) / 1e6,
            "growth": growth,
        },
        "targets": {
            "refused": f"99 % of refusals within {REFUSED_MS:g} ms",
            "accepted": f"accepted calls less than {SLOWER:g} times as long as unloaded (99 %)",
            "health": "health always SERVING",
            "memory": f"memory grows by less than {GROWTH:.0%}",
            "codes": "no status but OK and RESOURCE_EXHAUSTED",
        },
        "held": {
            "refused": ours["refused"]["all"]["p99_ms"] < REFUSED_MS,
            "accepted": slower < SLOWER,
            "health": set(health) == {"SERVING"},
            "memory": growth < GROWTH,
            "codes": set(loaded.codes) <= {"OK", "RESOURCE_EXHAUSTED"},
        },
    }


def summaries(made: Made, code: str) -> dict[str, Any]:
    """Of all calls with a status, and of each class."""
    costs = sorted({cost for _, cost in made.milliseconds})
    return {"all": summary(made.of(code)), **{cost: summary(made.of(code, cost)) for cost in costs}}


def summary(taken: Sequence[float]) -> dict[str, Any]:
    """How many, and what they took."""
    if not taken:
        return {"calls": 0, "p50_ms": 0.0, "p99_ms": 0.0, "most_ms": 0.0}
    return {
        "calls": len(taken),
        "p50_ms": statistics.median(taken),
        "p99_ms": percentile(taken),
        "most_ms": max(taken),
    }


def percentile(taken: Sequence[float]) -> float:
    """The 99th."""
    return float(np.percentile(taken, 99))


def show(row: Row) -> None:
    """Print what was found."""
    print(
        f"{row['what']}, {row['seconds']:.0f} s, {row['workers']} workers: capacity "
        f"{row['capacity_per_second']:.0f}/s, begun {row['begun_per_second']:.0f}/s "
        f"(late {row['late_p99_ms']:.1f} ms), accepted {row['accepted_per_second']:.0f}/s, "
        f"{row['codes']}"
    )
    for what in ("unloaded", "accepted", "refused", "after"):
        for cost, found in row[what].items():
            print(
                f"  {what:<9} {cost:<6} {found['calls']:>9,} calls {found['p50_ms']:>9.2f} ms, "
                f"99 % {found['p99_ms']:>9.2f}, most {found['most_ms']:>9.2f}"
            )
    health, memory = row["health"], row["memory_MB"]
    print(
        f"  accepted to unloaded x {row['accepted_p99_to_unloaded']:.2f}; health "
        f"{health['codes']}, 99 % {health['p99_ms']:.1f} ms, most {health['most_ms']:.1f}; memory "
        f"{memory['first']:.0f} to {memory['last']:.0f} MB ({memory['growth']:+.1%})"
    )
    for what, held in row["held"].items():
        print(f"  {what}: {'held' if held else 'MISSED'}")


if __name__ == "__main__":
    raise SystemExit(main())
