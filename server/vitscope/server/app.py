"""A running server: indexes, service, health, reflection, and an orderly end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vitscope.server.admission import Gates
from vitscope.server.early import EarlyRefusals
from vitscope.server.errors import StartError
from vitscope.server.guard import Guard, GuardOptions
from vitscope.server.intake import make_server
from vitscope.server.listening import cannot_listen, free_address, host_and_port
from vitscope.server.liveoptions import LiveOptions
from vitscope.server.log import LogOptions, call_log
from vitscope.server.metrics import Metrics, prepare_metrics, serve_metrics
from vitscope.server.queries.model import LiveModel
from vitscope.server.served import Served, index_paths, settle
from vitscope.server.service import ActivationService
from vitscope.server.status import StatusInterceptor
from vitscope.server.tracing import Traces, wants_traces
from vitscope.store import neighbours
from vitscope.store.generation import Generation
from vitscope.v1 import service_pb2, service_pb2_grpc

_MOST_WORKERS = 256
_LONGEST_GRACE = 1e6
HELD_BACK = frozenset((signal.SIGINT, signal.SIGHUP))
"""Signals that a worker is started without, until it can tell what to make of them."""
_OPEN = 128
"""Calls of one connection that are open; more wait at the caller and take nothing here. What comes
faster than it can be refused would be held without bound otherwise."""
_SWITCH = 0.002
"""Seconds; fewer change threads so often that answers take longer, more make refusals late."""
_LAST = 0.1
"""Seconds for what is left to do after the last call."""
_NOTICE = 0.25
"""Seconds from the news that the server ends to its taking no new call."""
SERVICE = service_pb2.DESCRIPTOR.services_by_name["ActivationService"].full_name


def _cores() -> int:
    """Those that this process may use: `taskset`, or PYTHON_CPU_COUNT, may say fewer than all."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve."""

    indexes: Sequence[Path]
    listen: str = "127.0.0.1:50051"
    """HOST:PORT; port 0 takes a free one."""
    reflection: bool = False
    grace: float = 10.0
    """Seconds that calls in flight get at the end."""
    threads: int = field(default_factory=_cores)
    live: LiveOptions | None = None
    """Whether and how to run the models of the indexes."""
    guard: GuardOptions = field(default_factory=GuardOptions)
    """Who may ask, and over what."""
    in_hand: Mapping[str, int] = field(default_factory=dict)
    """Calls of a class that are answered or wait, where it is not the usual number."""
    metrics: str = ""
    """HOST:PORT where Prometheus asks; empty for none."""
    shared_port: bool = False
    """Whether other workers listen on the port too."""
    follow: float = 1.0
    """Seconds between two looks for newly published generations; 0 for none."""
    log: LogOptions = field(default_factory=LogOptions)
    """Of workers too, and which calls get a line."""
    otel: bool | None = None
    """Whether spans go to a collector; None where OpenTelemetry's variables say."""


def load_live(
    names: Collection[str], options: LiveOptions, generations: Mapping[str, Generation]
) -> Mapping[str, LiveModel]:
    """The live models of some of the indexes called `names`; raises `StartError`."""
    try:
        # Nothing of torch is loaded without.
        from vitscope.server.live import load
    except ImportError as error:
        raise StartError(
            f"--live runs the models with the indexer's libraries, and {error.name} is not "
            "installed; install them with: pip install 'vitscope[server,indexer]'."
        ) from None
    return load(generations, options, names)


def start(settings: Settings, workers: int, ready: Callable[[str], None]) -> None:
    """Serve by so many processes until SIGINT or SIGTERM; `ready` gets the address.

    Raises `StartError`, and what opening the indexes raises.
    """
    if not 1 <= workers <= _MOST_WORKERS:
        raise StartError(f"--workers {workers} cannot be; give 1 to {_MOST_WORKERS}.")
    _check_seconds(settings)
    settings = replace(settings, otel=wants_traces(settings.otel))
    if settings.metrics:
        settings.guard.check_metrics(settings.metrics)
        prepare_metrics(several=workers > 1)
    if workers == 1:
        if settings.metrics:
            serve_metrics(settings.metrics)
        asyncio.run(serve(settings, ready))
        return
    from vitscope.server.workers import serve_side_by_side

    serve_side_by_side(settings, workers, ready)


async def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; calls `ready` with the address once it accepts calls."""
    _check_seconds(settings)
    # gRPC's loop lets go of the interpreter several times a call, and threads that answer keep it
    # for so long before they give it back.
    sys.setswitchinterval(_SWITCH)
    guard = Guard(settings.guard)
    paths = index_paths(settings.indexes)
    load = partial(load_live, paths, settings.live) if settings.live else None
    # With the live models, before FAISS, which has to come after torch.
    served = Served(paths, load)
    neighbours.prepare()
    # Requests share the cores: FAISS gets one thread for each of them.
    prepare = partial(neighbours.prepare, threads=1)
    with closing(Gates(settings.threads, settings.in_hand, prepare)) as gates:
        metrics = Metrics() if settings.metrics else None
        traces = Traces() if settings.otel else None
        status = _status(metrics, traces, settings.log)
        early = EarlyRefusals(gates, live=load is not None)
        interceptors = [status, *guard.interceptors(), early]
        checks = await _health(paths)
        # Off, or a second server on the port would silently take half of the calls.
        options = [
            ("grpc.so_reuseport", int(settings.shared_port)),
            ("grpc.max_concurrent_streams", _OPEN),
        ]
        with _batching():
            server = make_server(
                aio.server, early.refusal_of, interceptors=interceptors, options=options
            )
        _add_services(server, ActivationService(served, gates), checks, settings.reflection)
        address = _bind(server, settings, guard)
        if traces:
            traces.address = address
        stopped = _stop_event()
        guard.follow_signals()
        if multiprocessing.parent_process() is not None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        settle()
        with _batching():
            await server.start()
        ready(address)
        tasks = [asyncio.create_task(served.follow(settings.follow or float("inf")))]
        if metrics:
            tasks.append(asyncio.create_task(metrics.watch(gates)))
        await stopped.wait()
        for task in tasks:
            task.cancel()
        await _end(server, checks, settings.grace)
        if traces:
            await traces.close()


async def _end(server: aio.Server, checks: Any, grace: float) -> None:
    """Tell callers, then stop; calls in flight get so many seconds."""
    await checks.enter_graceful_shutdown()
    # Calls on their way arrive, and callers that watch the health go elsewhere: gRPC cancels
    # what comes once it ends.
    await asyncio.sleep(_NOTICE)
    await server.stop(grace)
    await begin_all()


async def begin_all() -> None:
    """Let all tasks begin, and end if they can at once.

    gRPC has one for a call that came as the server ended, and prints a trace where that is
    cancelled, as everything is at the end, before it has begun.
    """
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=_LAST)


@contextmanager
def _batching() -> Iterator[None]:
    """Threads that are begun here, gRPC's, do not interrupt others whenever bytes come, but find
    some calls together a moment later.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    usual = os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, usual)
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, usual)


def _check_seconds(settings: Settings) -> None:
    if not (settings.follow == 0 or 0.05 <= settings.follow < float("inf")):
        raise StartError("--follow is a number of seconds from 0.05 on, or 0 for never.")
    if not 0 <= settings.grace <= _LONGEST_GRACE:
        raise StartError(f"--grace {settings.grace} cannot be; give 0 to {_LONGEST_GRACE:.0f} s.")


def _status(metrics: Metrics | None, traces: Traces | None, log: LogOptions) -> StatusInterceptor:
    """What tells all that want to know how a call ended."""
    log_call = call_log(log)
    # Traces first: what is logged of a call names its trace.
    told = (traces and traces.ended, metrics and metrics.ended, log_call)
    observers = [each for each in told if each]
    return StatusInterceptor(observers, peers=bool(traces or log_call))


def _add_services(server: aio.Server, service: Any, checks: Any, reflected: bool) -> None:
    """What can be called."""
    service_pb2_grpc.add_ActivationServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    if reflected:
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)


async def _health(names: Iterable[str]) -> Any:
    """Health of the server, of the service, and of every index as `SERVICE/NAME`."""
    checks = health.aio.HealthServicer()
    for name in ("", SERVICE, *(f"{SERVICE}/{name}" for name in names)):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    return checks


def _bind(server: aio.Server, settings: Settings, guard: Guard) -> str:
    host, port = host_and_port("--listen", settings.listen)
    bound = 0
    # The parent of several workers has asked already, and keeps the port.
    if settings.shared_port or free_address(host.strip("[]"), port):
        with suppress(RuntimeError):
            bound = guard.add_port(server, settings.listen)
    if not bound:
        raise cannot_listen(settings.listen)
    return f"{host}:{bound}"


def _stop_event() -> asyncio.Event:
    """Set by SIGINT and SIGTERM from now on, and for a worker by the death of its parent."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    if (parent := multiprocessing.parent_process()) is not None:
        loop.add_reader(parent.sentinel, _parent_gone, loop, parent.sentinel, stopped)
    return stopped


def _parent_gone(loop: asyncio.AbstractEventLoop, sentinel: int, stopped: asyncio.Event) -> None:
    loop.remove_reader(sentinel)
    stopped.set()
