"""The one place where exceptions become gRPC status codes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from vitscope.server.errors import (
    InvalidArgumentError,
    NotFoundError,
    NotKeptHereError,
    OverRateError,
    UnauthenticatedError,
)
from vitscope.store.errors import DamagedIndexError, NotReadError

_log = logging.getLogger("vitscope.server")

CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    NotKeptHereError: grpc.StatusCode.FAILED_PRECONDITION,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    OverRateError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DamagedIndexError: grpc.StatusCode.DATA_LOSS,
    NotReadError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class StatusInterceptor(aio.ServerInterceptor):
    """Ends a call that raised with the status of its exception; unknown ones say nothing."""

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
        if handler.response_streaming:
            # gRPC's own health.Watch is no generator: it writes its replies to the context.
            generator = inspect.isasyncgenfunction(handler.unary_stream)
            wrap = _streaming if generator else _single
            return grpc.unary_stream_rpc_method_handler(
                wrap(handler.unary_stream, parse), response_serializer=serialize
            )
        return grpc.unary_unary_rpc_method_handler(
            _single(handler.unary_unary, parse), response_serializer=serialize
        )


def _single(method: Callable[..., Any], parse: Callable[[bytes], Any]) -> Any:
    async def call(data: bytes, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await method(_request(parse, data), context)
        except Exception as error:
            return await _abort(context, error)

    return call


def _streaming(method: Callable[..., Any], parse: Callable[[bytes], Any]) -> Any:
    async def call(data: bytes, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            async for reply in method(_request(parse, data), context):
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


async def _abort(context: aio.ServicerContext[Any, Any], error: Exception) -> None:
    if isinstance(error, aio.AbortError):
        raise error
    code = CODES.get(type(error))
    if code is None:
        _log.error("A call failed in the server.", exc_info=error)
        await context.abort(
            grpc.StatusCode.INTERNAL, "The server failed to answer; its log says why."
        )
    if code is grpc.StatusCode.DATA_LOSS:
        _log.error("%s", error)
    await context.abort(code, str(error))
