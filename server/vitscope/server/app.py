"""A running server: indexes, service, health, reflection, and an orderly end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vitscope.server.errors import StartError
from vitscope.server.guard import Guard, GuardOptions
from vitscope.server.liveoptions import LiveOptions
from vitscope.server.queries.model import LiveModel
from vitscope.server.service import ActivationService
from vitscope.server.status import StatusInterceptor
from vitscope.store import neighbours
from vitscope.store.generation import Generation, open_generation
from vitscope.v1 import service_pb2, service_pb2_grpc

SERVICE = service_pb2.DESCRIPTOR.services_by_name["ActivationService"].full_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve."""

    indexes: Sequence[Path]
    listen: str = "127.0.0.1:50051"
    """HOST:PORT; port 0 takes a free one."""
    reflection: bool = False
    grace: float = 10.0
    """Seconds that calls in flight get at the end."""
    threads: int = os.cpu_count() or 1
    live: LiveOptions | None = None
    """Whether and how to run the models of the indexes."""
    guard: GuardOptions = field(default_factory=GuardOptions)
    """Who may ask, and over what."""


def open_indexes(paths: Sequence[Path]) -> dict[str, Generation]:
    """Open the published generation of every index, by the name of its folder."""
    generations: dict[str, Generation] = {}
    for path in paths:
        name = path.resolve().name
        if name in generations:
            raise StartError(f"Two indexes are called {name!r}; rename one of the folders.")
        generations[name] = open_generation(path)
    return generations


def load_live(
    generations: Mapping[str, Generation], options: LiveOptions
) -> Mapping[str, LiveModel]:
    """The live model of every index; raises `StartError` where there can be none."""
    try:
        # Nothing of torch is loaded without.
        from vitscope.server.live import load
    except ImportError as error:
        raise StartError(
            f"--live runs the models with the indexer's libraries, and {error.name} is not "
            "installed; install them with: pip install 'vitscope[server,indexer]'."
        ) from None
    return load(generations, options)


async def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; calls `ready` with the address once it accepts calls."""
    guard = Guard(settings.guard)
    generations = open_indexes(settings.indexes)
    # Before FAISS, which has to come after torch.
    live = load_live(generations, settings.live) if settings.live else {}
    neighbours.prepare()
    # Requests share the cores: FAISS gets one thread for each of them.
    prepare = partial(neighbours.prepare, threads=1)
    with ThreadPoolExecutor(settings.threads, "vitscope-query", prepare) as executor:
        # Off, or a second server on the port would silently take half of the calls.
        options = [("grpc.so_reuseport", 0)]
        interceptors = [*guard.interceptors(), StatusInterceptor()]
        server = aio.server(interceptors=interceptors, options=options)
        service = ActivationService(generations, executor, live)
        service_pb2_grpc.add_ActivationServiceServicer_to_server(service, server)
        checks = await _add_health(server)
        if settings.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        address = _bind(server, settings.listen, guard)
        stopped = _stop_event()
        guard.follow_signals()
        await server.start()
        ready(address)
        await stopped.wait()
        await checks.enter_graceful_shutdown()
        await server.stop(settings.grace)


async def _add_health(server: aio.Server) -> Any:
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for name in ("", SERVICE):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    return checks


def _bind(server: aio.Server, listen: str, guard: Guard) -> str:
    host, _, port = listen.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise StartError(f"--listen {listen!r} is not HOST:PORT, such as 127.0.0.1:50051.")
    bound = 0
    if _can_bind(host.strip("[]"), int(port)):
        with suppress(RuntimeError):
            bound = guard.add_port(server, listen)
    if not bound:
        raise StartError(
            f"Cannot listen on {listen}: the port is in use or the host is not this machine's; "
            "choose another with --listen HOST:PORT."
        )
    return f"{host}:{bound}"


def _can_bind(host: str, port: int) -> bool:
    """Whether one address of `host` is free; gRPC would log lines of its own where none is."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, protocol, _, address in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            # As gRPC does: connections that have just ended do not keep a port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return True
    return False


def _stop_event() -> asyncio.Event:
    """Set by SIGINT and SIGTERM from now on."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    return stopped
