"""Several processes on one port: the system gives each new connection to one of them.

Each opens the indexes for itself; the pages of their files are shared by the system. One that dies
is started again. The parent answers nothing, so that nothing asked can bring it down.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from vitscope.server.app import Settings, serve
from vitscope.server.errors import StartError
from vitscope.server.listening import cannot_listen, free_address, host_and_port
from vitscope.server.log import set_up
from vitscope.server.metrics import forget, serve_metrics

_log = logging.getLogger("vitscope.server")

_LONG_ENOUGH = 10.0
"""Seconds after which a worker's death is no failure to start."""
_LONGEST_PAUSE = 30.0
_BEYOND_GRACE = 5.0
"""Seconds that a worker may take to end after the grace of its calls."""


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    told: Connection
    """Says the address once it accepts calls, or why it cannot."""
    started: float


def serve_side_by_side(settings: Settings, count: int, ready: Callable[[str], None]) -> None:
    """Serve by `count` processes until SIGINT or SIGTERM; `ready` gets the address.

    Raises `StartError` where they cannot start.
    """
    host, port = host_and_port("--listen", settings.listen)
    with _reserved(host, port) as kept:
        # Once, and not by every worker.
        settings.guard.check_address(settings.listen)
        address = f"{host}:{kept.getsockname()[1]}"
        _Parent(replace(settings, listen=address, shared_port=True), count).run(
            lambda: ready(address)
        )


class _Parent:
    def __init__(self, settings: Settings, count: int) -> None:
        self._settings = settings
        self._count = count
        self._workers: dict[int, _Worker] = {}
        self._due: dict[int, float] = {}
        """When a worker that died is to be started again, by its number."""
        self._deaths = [0] * count
        self._stopping = False

    def run(self, ready: Callable[[], None]) -> None:
        waking, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._stop)
        if self._settings.guard.has_files:
            # Workers look themselves whether these files have changed.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            if self._settings.metrics:
                serve_metrics(self._settings.metrics)
            for number in range(self._count):
                self._start(number)
            if self._all_ready(waking):
                ready()
            while not self._stopping:
                self._watch(waking)
        finally:
            self._end()
            signal.set_wakeup_fd(-1)
            os.close(waking)
            os.close(wake)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _start(self, number: int) -> None:
        # A forked child of a process that once used gRPC hangs.
        context = multiprocessing.get_context("spawn")
        told, tells = context.Pipe(duplex=False)
        level = logging.getLogger().level
        process = context.Process(
            target=_work, args=(self._settings, tells, level), name=f"worker {number}"
        )
        # What a terminal's Ctrl-C sends reaches it too, before it can tell what to make of it.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        tells.close()
        self._workers[number] = _Worker(process, told, time.monotonic())

    def _all_ready(self, waking: int) -> bool:
        """Whether every worker accepts calls; raises `StartError` where one cannot."""
        waiting = {worker.told for worker in self._workers.values()}
        while waiting and not self._stopping:
            for each in wait([*waiting, waking]):
                if isinstance(each, Connection):
                    waiting.discard(each)
                    _check_started(each)
        return not self._stopping

    def _watch(self, waking: int) -> None:
        """Wait for a signal or a death, and start again who is due."""
        now = time.monotonic()
        for number, due in list(self._due.items()):
            if due <= now:
                del self._due[number]
                self._start(number)
        pause = min(self._due.values(), default=now + 3600) - now
        sentinels = {worker.process.sentinel: number for number, worker in self._workers.items()}
        for each in wait([*sentinels, waking], max(0.0, pause)):
            if each in sentinels and not self._stopping:
                self._died(sentinels[each])

    def _died(self, number: int) -> None:
        worker = self._workers.pop(number)
        worker.process.join()
        if self._settings.metrics:
            forget(worker.process.pid or 0)
        why = _last_words(worker.told) or _how(worker.process.exitcode or 0)
        worker.told.close()
        lived = time.monotonic() - worker.started
        self._deaths[number] = 0 if lived > _LONG_ENOUGH else self._deaths[number] + 1
        pause = min(_LONGEST_PAUSE, 0.1 * 2 ** self._deaths[number])
        self._due[number] = time.monotonic() + pause
        _log.error(
            "Worker %d ended by itself (%s); it is started again in %.1f s.",
            number,
            why,
            pause,
        )

    def _end(self) -> None:
        processes = [worker.process for worker in self._workers.values()]
        for process in processes:
            with suppress(ProcessLookupError):
                process.terminate()
        limit = time.monotonic() + self._settings.grace + _BEYOND_GRACE
        for process in processes:
            process.join(max(0.0, limit - time.monotonic()))
            if process.is_alive():
                _log.error("A worker does not end; it is killed.")
                process.kill()
                process.join()


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _last_words(told: Connection) -> str:
    """Why a worker could not serve, if it said so."""
    said = None
    with suppress(EOFError, OSError):
        while told.poll():
            said = told.recv()
    return str(said).rstrip(".") if isinstance(said, Exception) else ""


def _check_started(told: Connection) -> None:
    try:
        said = told.recv()
    except EOFError:
        raise StartError("A worker ended before it could serve; its log says why.") from None
    if isinstance(said, Exception):
        raise said


def _reserved(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for the workers, without listening itself."""
    found = free_address(host.strip("[]"), port)
    if found is None:
        raise cannot_listen(f"{host}:{port}")
    family, kind, protocol, address = found
    kept = socket.socket(family, kind, protocol)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    kept.bind(address)
    return kept


def _work(settings: Settings, tells: Connection, level: int) -> None:
    """A worker process: serve until told to stop, or until the parent is gone."""
    set_up(level)
    try:
        asyncio.run(serve(settings, tells.send))
    except Exception as error:
        # One sentence travels, with the exit code that its kind has; a bug of ours ends it here.
        if not hasattr(error, "exit_code"):
            raise
        tells.send(type(error)(*error.args))
