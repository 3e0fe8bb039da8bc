"""What becomes of a server that is asked ten times what it can answer.

    python -m vitscope.bench.overload [--minutes N] [--quick] [--json FILE]

Calls are of every kind that `questions` has, one as often as the other, over an index of drawn
scenes with a layer kept whole. The server, as `vitscope serve` starts it, has all cores but the
last; callers have that one, in processes of their own, and do not try again. First one caller asks
after the other: unloaded. Then as many as it takes until more are not answered faster: capacity.
Then calls are begun at random moments, ten times as many a second as that, whatever becomes of
those before, and health is asked for ten times a second. Ten times the calls cost the callers'
core ten times as much too; `late_p99_ms` says by how much calls were begun later than meant. The
first two seconds stand apart as the onset, of which statuses alone are judged: for one second it
may be a burst, which the server bears, and calls wait then as they will not again.

Refused calls are to be told so within 20 ms (99th percentile), accepted ones to take less than
twice what they take unloaded (99th percentiles of all kinds together), health always to answer,
memory to grow by less than a tenth from a tenth of the time on, and from the 20th second at least.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitscope.bench import arguments
from vitscope.bench.callers import Call, Made, closed, cores, flooded, probe, run, serving, start
from vitscope.bench.questions import make_index, questions
from vitscope.bench.record import Row, write
from vitscope.bench.servers import SERVICE
from vitscope.server.questions import QUESTIONS

PACKAGES = ("vitscope", "numpy", "tensorstore", "faiss-cpu", "grpcio")
TIMES = 10
CALLERS = (2, 4, 8)
"""That ask without pause when capacity is measured; fewer than are refused."""
ONSET = 2.0
"""Seconds."""
MEMORY_EVERY, MEMORY_FROM = 5.0, 20.0
"""Seconds. Counting pages takes the server's memory map from it for some milliseconds, and until
every kind of call was made it takes what it keeps."""
LEAST_MINUTES = 0.6
"""In which memory is looked at three times after that."""
REFUSED_MS, SLOWER, GROWTH = 20.0, 2.0, 0.1
TARGETS = {
    "refused": f"99 % of refusals within {REFUSED_MS:g} ms",
    "accepted": f"accepted calls less than {SLOWER:g} times as long as unloaded (99 %)",
    "health": "health always SERVING",
    "memory": f"memory grows by less than {GROWTH:.0%}",
    "codes": "no status but OK and RESOURCE_EXHAUSTED",
}


def main() -> int:
    """Measure, print, write the result file; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=10.0, help="of overload")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="shorter rounds")
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    if not args.minutes >= LEAST_MINUTES:
        parser.error(f"--minutes must be at least {LEAST_MINUTES:g}: memory is to settle before")
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


@dataclass
class Found:
    """What is measured, in the order of its measuring."""

    unloaded: Made
    speeds: Mapping[int, float]
    """Answers a second, by callers."""
    onset: Made
    loaded: Made
    health: Mapping[str, Sequence[float]]
    """Milliseconds, by status."""
    after: Made
    memory: Sequence[int]
    """Bytes."""


def measured(index: Path, pictures: int, workers: int, seconds: float, long: float) -> Row:
    """The row of the result."""
    calls = calls_of(pictures)
    with serving(index, workers) as (address, process), ExitStack() as stack:
        # Everything was read once.
        run(closed, address, calls, 2, seconds / 2)
        unloaded = run(closed, address, calls, 1, seconds)
        speeds = {}
        for callers in CALLERS:
            made = run(closed, address, calls, callers, seconds / 2)
            speeds[callers] = len(made.of("OK")) / (seconds / 2)
        memory: list[int] = []
        told = start(stack, probe, address, ONSET + long)
        rate = TIMES * max(speeds.values())
        flood = start(stack, flooded, address, calls, rate, ONSET, long)
        end = time.monotonic() + ONSET + long
        while time.monotonic() < end:
            memory.append(resident(process))
            time.sleep(MEMORY_EVERY)
        (onset, loaded), health = flood.recv(), told.recv()
        # As if nothing had been.
        after = run(closed, address, calls, 1, seconds)
    return row_of(workers, long, Found(unloaded, speeds, onset, loaded, health, after, memory))


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


def row_of(workers: int, seconds: float, found: Found) -> Row:
    """One row of the result."""
    loaded, speeds, codes = found.loaded, found.speeds, found.loaded.codes
    ours: dict[str, Any] = {
        "unloaded": summaries(found.unloaded, "OK"),
        "onset": summaries(found.onset, "OK"),
        "accepted": summaries(loaded, "OK"),
        "refused": summaries(loaded, "RESOURCE_EXHAUSTED"),
        "after": summaries(found.after, "OK"),
    }
    slower = ours["accepted"]["all"]["p99_ms"] / ours["unloaded"]["all"]["p99_ms"]
    answered = found.health.get("SERVING", [])
    statuses = {code: len(taken) for code, taken in found.health.items()}
    memory = growth_of(found.memory)
    return {
        "what": f"{TIMES} times overload",
        "workers": workers,
        "cores": [sorted(some) for some in cores()],
        "seconds": seconds,
        "capacity_per_second": max(speeds.values()),
        "answered_per_second_by_callers": {str(many): speed for many, speed in speeds.items()},
        "begun_per_second": sum(codes.values()) / seconds,
        "accepted_per_second": codes.get("OK", 0) / seconds,
        "codes": codes,
        "onset_codes": found.onset.codes,
        "most_at_once": loaded.most_at_once,
        "late_p99_ms": percentile(loaded.late),
        **ours,
        "accepted_p99_to_unloaded": slower,
        "health": {**summary(answered), "codes": statuses},
        "memory_MB": memory,
        "targets": TARGETS,
        "held": {
            "refused": 0 < ours["refused"]["all"]["p99_ms"] < REFUSED_MS,
            "accepted": 0 < slower < SLOWER,
            "health": set(statuses) == {"SERVING"},
            "memory": memory["growth"] < GROWTH,
            "codes": {*codes, *found.onset.codes} <= {"OK", "RESOURCE_EXHAUSTED"},
        },
    }


def growth_of(memory: Sequence[int]) -> dict[str, float]:
    """Megabytes in the first tenth of the time that counts, and in the last."""
    warm = memory[max(len(memory) // 10, int(MEMORY_FROM / MEMORY_EVERY)) :]
    part = max(1, len(warm) // 10)
    first, last = (statistics.median(some) for some in (warm[:part], warm[-part:]))
    return {
        "first": first / 1e6,
        "last": last / 1e6,
        "most": max(memory) / 1e6,
        "growth": last / first - 1,
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
    for what in ("unloaded", "onset", "accepted", "refused", "after"):
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
