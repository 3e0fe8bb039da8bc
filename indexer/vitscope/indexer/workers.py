"""Units done one after the other here, or side by side by several processes.

The parent hands a unit to whoever is free; a worker builds its own job from the same options and
proves by its plan that it is the same. What is published does not depend on who did which unit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from typing import Any, Protocol, TypeAlias, cast

from vitscope.indexer.errors import IndexingError
from vitscope.indexer.job import Job, prepare
from vitscope.indexer.memory import enough_memory
from vitscope.indexer.options import Options
from vitscope.indexer.plan import Unit
from vitscope.indexer.stages import Stages
from vitscope.indexer.unit import Worker
from vitscope.indexer.work import Work
from vitscope.store.progress import Progress

Channel: TypeAlias = "Connection[Any, Any]"


class Parent(Protocol):
    """Who sends units to a worker."""

    def send(self, said: Any, /) -> None:
        """Images done; None to ask for a unit; seconds of each stage at the end; an error."""

    def recv(self) -> Any:
        """A unit, or None after the last; raises `EOFError` where the parent is gone."""


class WorkerError(IndexingError):
    """A worker process failed or was killed."""


def run_here(
    job: Job, work: Work, finished: Sequence[Unit], units: Sequence[Unit], progress: Progress
) -> Mapping[str, float]:
    """Index `units` in this process; gives the seconds of each stage."""
    with enough_memory(), closing(Worker(job, work, progress.advance)) as worker:
        worker.restore(finished)
        worker.run_all(units)
    return worker.stages.seconds


def run_side_by_side(
    options: Options,
    work: Work,
    locks: Sequence[int],
    finished: Sequence[Unit],
    units: Sequence[Unit],
    progress: Progress,
) -> Mapping[str, float]:
    """Index `units` in `options.processes` processes; gives the seconds of each stage.

    They inherit the descriptors `locks`, so that nobody else writes while one of them is left over.
    Raises `WorkerError` where one fails.
    """
    # A process that has only loaded what takes seconds to load, and is forked for every worker.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm"])
    workers: dict[Channel, ForkServerProcess] = {}
    try:
        for number in range(min(options.processes, len(units))):
            mine, theirs = context.Pipe()
            held = [DupFd(lock) for lock in locks]
            given = (options, number, work.plan.to_json(), finished, theirs, held)
            workers[mine] = context.Process(target=_serve, args=given)
            workers[mine].start()
            # Its end is the worker's alone to close: its death is then noticed as an end of file.
            theirs.close()
        return _hand_out(units, workers, progress)
    finally:
        started = [process for process in workers.values() if process.pid]
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _hand_out(
    units: Sequence[Unit], workers: Mapping[Channel, ForkServerProcess], progress: Progress
) -> Mapping[str, float]:
    """Send every unit to a worker, in order, until all are done; gives the seconds of each stage.

    A worker asks for the next unit when it begins one; None instead tells it to end.
    """
    left = deque(units)
    stages = Stages()

    def hand(connection: Channel) -> None:
        connection.send(left.popleft() if left else None)

    for connection in workers:
        hand(connection)
    busy = set(workers)
    while busy:
        for connection in cast(list[Channel], wait(list(busy))):
            try:
                said = connection.recv()
            except (EOFError, ConnectionResetError):
                raise _lost(workers[connection]) from None
            if isinstance(said, Exception):
                raise said
            if isinstance(said, int):
                progress.advance(said)
            elif said is None:
                hand(connection)
            else:
                stages.add(said)
                busy.discard(connection)
    return stages.seconds


def _lost(process: ForkServerProcess) -> WorkerError:
    process.join()
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"stopped with code {code}"
    memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return WorkerError(f"A worker process {how}{memory}; run the same command again to go on.")


def _serve(
    options: Options,
    number: int,
    plan: bytes,
    finished: Sequence[Unit],
    connection: Channel,
    locks: Sequence[Any],
) -> None:
    """A worker process: do the units that the parent sends, until it closes the connection."""
    # The parent stops its workers; a Ctrl-C in the terminal reaches all of them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for lock in locks:
        lock.detach()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    serve(options, number, plan, finished, connection)


def serve(
    options: Options, number: int, plan: bytes, finished: Sequence[Unit], connection: Parent
) -> None:
    """Do the units that a parent sends; tell it of images done, of stages at the end, of errors."""
    try:
        job = prepare(options, number)
        if job.plan.to_json() != plan:
            raise WorkerError(
                "The pictures or the model changed while the run began; run the same command again."
            )
        work = Work(options.out, job.plan)
        # Closed, it certainly writes no more.
        with enough_memory(), closing(Worker(job, work, connection.send)) as worker:
            worker.restore(finished)
            worker.run_all(_units(connection))
        connection.send(worker.stages.seconds)
    except EOFError:
        return
    except Exception as error:
        connection.send(portable(error))


def _units(connection: Parent) -> Iterator[Unit]:
    """Units that the parent sends, each after the first on being asked for it."""
    while (unit := connection.recv()) is not None:
        yield unit
        connection.send(None)


def portable(error: Exception) -> Exception:
    """The error as the parent can raise it: with its message and errno, without its cause."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename)
    if hasattr(error, "exit_code"):
        return type(error)(*error.args)
    # A bug of ours: its traceback does not travel by itself.
    error.add_note(f"In a worker process:\n{traceback.format_exc()}")
    return error


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
