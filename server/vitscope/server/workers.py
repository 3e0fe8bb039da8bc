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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from vitscope.server.app import HELD_BACK, Settings, serve
from vitscope.server.errors import StartError
from vitscope.server.listening import cannot_listen, free_address, host_and_port
from vitscope.server.log import set_up
from vitscope.server.metrics import forget, serve_metrics

_log = logging.getLogger("vitscope.server")

_LONG_ENOUGH = 10.0
"""Seconds of serving after which a worker's death is no failure to start."""
_LONGEST_PAUSE = 30.0
_BEYOND_GRACE = 5.0
"""Seconds that a worker may take to end after the grace of its calls."""


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    told: Connection
    """Says the address once it accepts calls, or why it cannot."""
    ready: float | None = None
    """When it said its address."""
    heard: bool = False
    """Whether it has said either, or nothing any more."""
    why: str = ""
    """Why it cannot serve, if it said so."""

    def hear(self) -> bool:
        """Take what it says; whether there was anything."""
        self.heard = True
        try:
            said = self.told.recv()
        except (EOFError, OSError):
            return False
        if isinstance(said, Exception):
            self.why = str(said).rstrip(".")
        else:
            self.ready = time.monotonic()
        return True


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
        self._reloading = False

    def run(self, ready: Callable[[], None]) -> None:
        waking, wake = os.pipe()
        for end in (waking, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._stop)
        if self._settings.guard.has_files:
            signal.signal(signal.SIGHUP, self._reload)
        try:
            if self._settings.metrics:
                serve_metrics(self._settings.metrics)
            for number in range(self._count):
                try:
                    self._start(number)
                except OSError as error:
                    raise StartError(
                        f"Worker {number} cannot be started ({error.strerror}); give fewer with "
                        "--workers, or let this user have more processes and open files."
                    ) from None
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

    def _reload(self, *_: object) -> None:
        self._reloading = True

    def _start(self, number: int) -> None:
        # A forked child of a process that once used gRPC hangs.
        context = multiprocessing.get_context("spawn")
        # Started beside the first worker otherwise, where it would let signals in.
        resource_tracker.ensure_running()
        told, tells = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(self._settings, tells, number), name=f"worker {number}"
        )
        # What a terminal sends reaches it too, before it can tell what to make of it. Held back
        # and not ignored, or a Ctrl-C at this moment would be lost for this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            process.start()
        except BaseException:
            told.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            tells.close()
        self._workers[number] = _Worker(process, told)

    def _all_ready(self, waking: int) -> bool:
        """Whether every worker accepts calls; raises `StartError` where one cannot."""
        while not self._stopping:
            waiting = {each.told: each for each in self._workers.values() if not each.ready}
            if not waiting:
                return True
            for each in wait([*waiting, waking]):
                # Workers that end because all are told to have not failed.
                if isinstance(each, Connection) and not self._stopping:
                    waiting[each].ready = _check_started(each)
                    waiting[each].heard = True
            _drain(waking)
        return False

    def _watch(self, waking: int) -> None:
        """Wait for a signal or a death, and start again who is due."""
        now = time.monotonic()
        for number, due in list(self._due.items()):
            if due <= now:
                del self._due[number]
                self._start_again(number)
        if self._reloading:
            self._reloading = False
            self._pass_on()
        pause = min(self._due.values(), default=now + 3600) - now
        sentinels = {worker.process.sentinel: number for number, worker in self._workers.items()}
        starting = {each.told: each for each in self._workers.values() if not each.heard}
        for each in wait([*sentinels, *starting, waking], max(0.0, pause)):
            if isinstance(each, Connection):
                starting[each].hear()
            elif each in sentinels and not self._stopping:
                self._died(sentinels[each])
        _drain(waking)

    def _start_again(self, number: int) -> None:
        try:
            self._start(number)
        except OSError as error:
            pause = self._later(number, 0.0)
            _log.error(
                "Worker %d cannot be started (%s); it is tried again in %.1f s.",
                number,
                error.strerror or error,
                pause,
            )

    def _pass_on(self) -> None:
        """Have workers read their files again; one that is not ready has yet to read them."""
        for worker in self._workers.values():
            if worker.ready is not None and worker.process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGHUP)

    def _died(self, number: int) -> None:
        worker = self._workers.pop(number)
        worker.process.join()
        if self._settings.metrics:
            forget(worker.process.pid or 0)
        while worker.told.poll() and worker.hear():
            pass
        why = worker.why or _how(worker.process.exitcode or 0)
        worker.told.close()
        lived = 0.0 if worker.ready is None else time.monotonic() - worker.ready
        pause = self._later(number, lived)
        _log.error(
            "Worker %d ended by itself (%s); it is started again in %.1f s.",
            number,
            why,
            pause,
        )

    def _later(self, number: int, lived: float) -> float:
        """Have a worker started again that served so many seconds; gives the seconds until then."""
        self._deaths[number] = 0 if lived > _LONG_ENOUGH else self._deaths[number] + 1
        # More would be beyond the longest pause, and in the end beyond numbers.
        pause = min(_LONGEST_PAUSE, 0.1 * 2.0 ** min(self._deaths[number], 9))
        self._due[number] = time.monotonic() + pause
        return pause

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
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        # Real-time signals have no names.
        name = signal.strsignal(-code) or f"signal {-code}"
    return f"killed by {name}"


def _drain(waking: int) -> None:
    """Forget the signals that have woken, which are seen by now."""
    with suppress(BlockingIOError):
        os.read(waking, 4096)


def _check_started(told: Connection) -> float:
    """When it was ready."""
    try:
        said = told.recv()
    except EOFError:
        raise StartError("A worker ended before it could serve; its log says why.") from None
    if isinstance(said, Exception):
        raise said
    return time.monotonic()


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


def _work(settings: Settings, tells: Connection, number: int) -> None:
    """A worker process: serve until told to stop, or until the parent is gone."""
    set_up(settings.log, number)

    def tell(what: object) -> None:
        # A parent that is gone ends it, by another way.
        with suppress(BrokenPipeError):
            tells.send(what)

    try:
        asyncio.run(serve(settings, tell))
    except PermissionError as error:
        # The command line has a sentence for it, with the file's name.
        tell(PermissionError(error.errno, error.strerror, error.filename))
    except Exception as error:
        # One sentence travels, with the exit code that its kind has; a bug of ours ends it here.
        if not hasattr(error, "exit_code"):
            raise
        tell(type(error)(*error.args))
