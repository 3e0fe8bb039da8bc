"""How calls are taken in: some are refused before gRPC does anything more for them.

gRPC's asyncio server (1.85) begins three tasks for each call, and three exchanges with its core
until it is ended, whatever becomes of it; here it is one task, and two. And the path of a call
whose method is not there it decodes as UTF-8 in the loop that takes all calls in, which ends, at
times with the process, where it is none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from grpc import aio

# No part of gRPC's public face, but there is no other way in.
cygrpc: Any = import_module("grpc._cython.cygrpc")

_log = logging.getLogger("vitscope.server")

_SEND = "_send_error_status_from_server"

Interceptors = Sequence[aio.ServerInterceptor]
Refusal = Callable[[], Exception]
"""Gives what a call is refused with."""
RefusalOf = Callable[[str], Refusal | None]
"""Of a call of a method; None where it is taken in."""


def make_server(
    make: Any, refusal_of: RefusalOf, *, interceptors: Interceptors, **options: Any
) -> aio.Server:
    """A server as `make(…)` gives it, that refuses early, and is not ended by a path."""
    usual = cygrpc.AioServer
    wanted = (usual, "_request_call"), (usual, "_request_registered_call"), (cygrpc, _SEND)
    try:
        # Others may decode paths elsewhere; calls are then refused later.
        if all(hasattr(*each) for each in wanted):
            cygrpc.AioServer = _choosing(usual, refusal_of, interceptors)
        server: aio.Server = make(interceptors=interceptors, **options)
        return server
    finally:
        cygrpc.AioServer = usual


def _choosing(usual: Any, refusal_of: RefusalOf, interceptors: Interceptors) -> Any:
    refusals: set[asyncio.Task[None]] = set()

    def refuse(call: Any, method: str, refusal: Refusal | None) -> None:
        task = asyncio.create_task(_refuse(call, method, refusal, interceptors))
        # A loop itself keeps no hold of its tasks.
        refusals.add(task)
        task.add_done_callback(refusals.discard)

    class Choosing(usual):  # type: ignore[misc]
        async def _request_call(self) -> Any:
            # The loop that waits for it would decode the path of what it gives.
            while True:
                refuse(await super()._request_call(), "/", None)

        async def _request_registered_call(self, method: bytes) -> Any:
            name = method.decode()
            while True:
                call = await super()._request_registered_call(method)
                refusal = refusal_of(name)
                if refusal is None:
                    return call
                refuse(call, name, refusal)
                # Or it would last until the next one comes.
                del call

    return Choosing


async def _refuse(
    call: Any, method: str, refusal: Refusal | None, interceptors: Interceptors
) -> None:
    loop = asyncio.get_running_loop()
    context = cygrpc._ServicerContext(call, None, None, loop)
    find: Any = partial(_handler, refusal)
    for each in reversed(interceptors):
        find = partial(each.intercept_service, find)
    try:
        handler = await find(_Details(method, context.invocation_metadata()))
        # Of the outermost: it refuses what has no handler, and what others refuse.
        await handler.stream_stream(None, context)
        # An abort would say the same, by an exception.
        code, details, trailing = context.code(), context.details(), context.trailing_metadata()
        initial = cygrpc.SendInitialMetadataOperation((), 0)
        await getattr(cygrpc, _SEND)(call, code.value[0], details, trailing, initial, loop)
    except cygrpc.ExecuteBatchError:
        # The caller has gone.
        pass
    except Exception:
        _log.exception("A call could not be refused.")


async def _handler(refusal: Refusal | None, _: object) -> None:
    """Of no method."""
    if refusal:
        raise refusal()


class _Details(NamedTuple):
    """As `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Any
