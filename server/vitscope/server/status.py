"""The one place where exceptions become gRPC status codes."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from vitscope.server.errors import (
    InvalidArgumentError,
    NotFoundError,
    NotKeptHereError,
    OverloadedError,
    UnauthenticatedError,
)
from vitscope.store.errors import DamagedIndexError, NotReadError

_log = logging.getLogger("vitscope.server")

CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    NotKeptHereError: grpc.StatusCode.FAILED_PRECONDITION,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DamagedIndexError: grpc.StatusCode.DATA_LOSS,
    NotReadError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


_LONGEST_WAIT_MS = 5_000
# Not from `grpc_health`: indexes that are opened without a server do without it.
_HEALTH = "grpc.health.v1.Health"

Ended = Callable[[str, str, float], None]
"""Is told of every call that ended: its method, the name of its status, its seconds."""


class StatusInterceptor(aio.ServerInterceptor):
    """Ends a call that raised with the status of its exception; unknown ones say nothing."""

    def __init__(self, ended: Ended | None = None) -> None:
        self._ended = ended

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        # No deserializer: gRPC would run it outside of `call` and answer UNKNOWN where it raises.
        parse, serialize = handler.request_deserializer, handler.response_serializer
        service, _, method = handler_call_details.method.rpartition("/")
        # Health ends its calls with statuses of its own, and supervisors ask all the time.
        ended = None if service == f"/{_HEALTH}" else self._ended
        timed = partial(_timed, ended, method)
        if handler.response_streaming:
            # gRPC's own health.Watch is no generator: it writes its replies to the context.
            generator = inspect.isasyncgenfunction(handler.unary_stream)
            wrap = _streaming if generator else _single
            return grpc.unary_stream_rpc_method_handler(
                wrap(handler.unary_stream, parse, timed), response_serializer=serialize
            )
        return grpc.unary_unary_rpc_method_handler(
            _single(handler.unary_unary, parse, timed), response_serializer=serialize
        )


_Timed = Callable[[], AbstractContextManager[None]]


@contextmanager
def _timed(ended: Ended | None, method: str) -> Iterator[None]:
    """Tell of the call that ends with the block, and how."""
    if ended is None:
        yield
        return
    began, code = time.perf_counter(), grpc.StatusCode.OK.name
    try:
        yield
    except Exception as error:
        status = status_of(error)
        code = status[0].name if status else grpc.StatusCode.INTERNAL.name
        raise
    except BaseException:
        # The caller went away, or its deadline has passed.
        code = grpc.StatusCode.CANCELLED.name
        raise
    finally:
        ended(method, code, time.perf_counter() - began)


def _single(method: Callable[..., Any], parse: Callable[[bytes], Any], timed: _Timed) -> Any:
    async def call(data: bytes, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            with timed():
                return await method(_request(parse, data), context)
        except Exception as error:
            return await _abort(context, error)

    return call


def _streaming(method: Callable[..., Any], parse: Callable[[bytes], Any], timed: _Timed) -> Any:
    async def call(data: bytes, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            # Closed at once where the caller goes away: it counts as open until then.
            async with aclosing(method(_request(parse, data), context)) as replies:
                with timed():
                    async for reply in replies:
                        yield reply
        except Exception as error:
            await _abort(context, error)

    return call


def _request(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        raise InvalidArgumentError(
            "The request cannot be read as the message that this method takes."
        ) from None


def status_of(error: Exception) -> tuple[grpc.StatusCode, str] | None:
    """The status of an exception that a request or the store can cause; None for any other."""
    code = CODES.get(type(error))
    return None if code is None else (code, str(error))


def pushback_of(error: Exception) -> tuple[tuple[str, str], ...]:
    """Trailing metadata that say when to come again, as gRPC retries understand (gRFC A6)."""
    if isinstance(error, OverloadedError):
        # A call that slept for longer would only fail later; less than none is not at all.
        wait = error.pushback_ms if error.pushback_ms <= _LONGEST_WAIT_MS else -1
        return (("grpc-retry-pushback-ms", str(wait)),)
    return ()


async def _abort(context: aio.ServicerContext[Any, Any], error: Exception) -> None:
    if isinstance(error, aio.AbortError):
        raise error
    status = status_of(error)
    if status is None:
        _log.error("A call failed in the server.", exc_info=error)
        await context.abort(
            grpc.StatusCode.INTERNAL, "The server failed to answer; its log says why."
        )
        return
    code, sentence = status
    if code is grpc.StatusCode.DATA_LOSS:
        _log.error("%s", sentence)
    await context.abort(code, sentence, pushback_of(error))
