"""Calls of methods that are not there: refused without a look at their path.

gRPC's asyncio server (1.85) decodes the path of such a call as UTF-8 in the loop that takes all
calls in, and ends, at times with the process, where it is none. Methods that are there are known to
its core, and do not come this way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from grpc import aio

# No part of gRPC's public face, but there is no other way in.
cygrpc: Any = import_module("grpc._cython.cygrpc")

Interceptors = Sequence[aio.ServerInterceptor]


def refuse_unknown(make: Any, *, interceptors: Interceptors, **options: Any) -> aio.Server:
    """A server as `make(…)` gives it, that is not ended by a path."""
    usual = cygrpc.AioServer
    try:
        # Older ones know no methods beforehand, and decode paths elsewhere.
        if all(
            hasattr(usual, name) for name in ("add_registered_method_handlers", "_request_call")
        ):
            cygrpc.AioServer = _refusing(usual, interceptors)
        server: aio.Server = make(interceptors=interceptors, **options)
        return server
    finally:
        cygrpc.AioServer = usual


def _refusing(usual: Any, interceptors: Interceptors) -> Any:
    refusals: set[asyncio.Task[None]] = set()

    class Refusing(usual):  # type: ignore[misc]
        async def _request_call(self) -> Any:
            # The loop that waits for it would decode the path of what it gives.
            while True:
                task = asyncio.create_task(_refuse(await super()._request_call(), interceptors))
                # A loop itself keeps no hold of its tasks.
                refusals.add(task)
                task.add_done_callback(refusals.discard)

    return Refusing


async def _refuse(call: Any, interceptors: Interceptors) -> None:
    context = cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
    find: Any = _no_handler
    for each in reversed(interceptors):
        find = partial(each.intercept_service, find)
    # The caller may have gone; and the end of a call is an exception too.
    with suppress(Exception):
        handler = await find(_Details("/", context.invocation_metadata()))
        # Of the outermost: it refuses what has no handler, and what others refuse.
        await handler.stream_stream(None, context)
        await context.abort(context.code(), context.details(), context.trailing_metadata())


async def _no_handler(_: object) -> None:
    return None


class _Details(NamedTuple):
    """As `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Any
