"""A running server: indexes, service, health, reflection, and an orderly end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vitscope.server.errors import StartError
from vitscope.server.service import ActivationService
from vitscope.server.status import StatusInterceptor
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


def open_indexes(paths: Sequence[Path]) -> dict[str, Generation]:
    """Open the published generation of every index, by the name of its folder."""
    generations: dict[str, Generation] = {}
    for path in paths:
        name = path.resolve().name
        if name in generations:
            raise StartError(f"Two indexes are called {name!r}; rename one of the folders.")
        generations[name] = open_generation(path)
    return generations


async def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; calls `ready` with the address once it accepts calls."""
    generations = open_indexes(settings.indexes)
    with ThreadPoolExecutor(settings.threads, "vitscope-query") as executor:
        # Off, or a second server on the port would silently take half of the calls.
        options = [("grpc.so_reuseport", 0)]
        server = aio.server(interceptors=[StatusInterceptor()], options=options)
        service = ActivationService(generations, executor)
        service_pb2_grpc.add_ActivationServiceServicer_to_server(service, server)
        checks = await _add_health(server)
        if settings.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        address = _bind(server, settings.listen)
        await server.start()
        ready(address)
        await _stop_signal()
        await checks.enter_graceful_shutdown()
        await server.stop(settings.grace)


async def _add_health(server: aio.Server) -> Any:
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for name in ("", SERVICE):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    return checks


def _bind(server: aio.Server, listen: str) -> str:
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise StartError(f"--listen {listen!r} is not HOST:PORT, such as 127.0.0.1:50051.")
    try:
        bound = server.add_insecure_port(listen)
    except RuntimeError:
        raise StartError(
            f"Cannot listen on {listen}: the port is in use or the host is not this machine's; "
            "choose another with --listen HOST:PORT."
        ) from None
    return f"{host}:{bound}"


async def _stop_signal() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
