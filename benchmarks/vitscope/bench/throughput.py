"""Calls a second beside an empty handler, by one worker and by two.

    python -m vitscope.bench.throughput [--quick] [--json FILE]

Milliseconds are those of a second by the calls that were answered in it, whoever waited for them.
The light questions that people ask most, over the index that `questions` makes. Either server has
the same number of processes on one port, and its handler gives the same bytes; they take turns, a
round each. Callers wait for an answer before they ask again, over a connection each, all in this
process, whose processor time is in both figures. On few cores callers and workers share them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

import grpc

from vitscope.bench import arguments
from vitscope.bench.questions import (
    ANSWER,
    CALLERS,
    EMPTY,
    PACKAGES,
    ROUNDS,
    Question,
    load,
    make_index,
)
from vitscope.bench.questions import questions as all_questions
from vitscope.bench.record import Row, compared, show, write
from vitscope.bench.servers import SERVICE, canned, served
from vitscope.store.text import counted
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

NAMES = (
    "top 20 images",
    "top 20 images with maps",
    "50 maps of a channel",
    "top channels of an image",
    "statistics of a layer",
    "similar channels",
    "similar images",
)
WORKERS = (1, 2)


def main() -> int:
    """Ask, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="fewer pictures and calls")
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    pictures, seconds = (256, 0.05) if args.quick else (2_000, 0.5)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder), pictures)
        index = Path(folder) / "index"
        light = [each for each in all_questions(pictures) if each.name in NAMES]
        for workers in WORKERS:
            with served(index, options=("--workers", str(workers))) as address:
                for question in light:
                    rows += rows_of(address, question, workers, seconds)
    if args.json:
        command = f"python -m vitscope.bench.throughput{' --quick' if args.quick else ''}"
        write(args.json, command, rows, PACKAGES)
    return 0


def rows_of(address: str, question: Question, workers: int, seconds: float) -> list[Row]:
    """Of one question, with each number of callers."""
    with grpc.insecure_channel(address) as channel:
        reply = getattr(ActivationServiceStub(channel), question.method)(question.requests[0])
        streamed = SERVICE.methods_by_name[question.method].server_streaming
        replies = [each.SerializeToString() for each in (reply if streamed else [reply])]
    rows = []
    with canned(question.method, replies, workers) as empty:
        for callers in CALLERS:
            speeds: dict[str, list[float]] = {EMPTY: [], ANSWER: []}
            for _ in range(ROUNDS):
                for name, server in ((ANSWER, address), (EMPTY, empty)):
                    taken = asyncio.run(load(server, question, callers, seconds))
                    speeds[name].append(callers * len(taken) / sum(taken) * 1e3)
            row = compared(
                f"{question.name}, {counted(workers, 'worker')}, {counted(callers, 'caller')}",
                {name: [1e3 / speed for speed in found] for name, found in speeds.items()},
                EMPTY,
                # Of one call among so many, whose trips go on side by side.
                work={"trips": 1 / callers, "moved": sum(map(len, replies))},
                workers=workers,
                callers=callers,
                calls_per_second={name: statistics.median(s) for name, s in speeds.items()},
            )
            rows.append(row)
            show([row])
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
