"""Around every call: its id, how it ended, and the one place where exceptions become statuses."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from time import perf_counter
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from vitscope.server.calls import REQUEST_ID, Call, Observer, call_from, current, host_of
from vitscope.server.errors import (
    InvalidArgumentError,
    NotFoundError,
    NotKeptHereError,
    OverloadedError,
    UnauthenticatedError,
    UnknownMethodError,
)
from vitscope.store.errors import DamagedIndexError, NotReadError

_log = logging.getLogger("vitscope.server")

CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    NotKeptHereError: grpc.StatusCode.FAILED_PRECONDITION,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    UnknownMethodError: grpc.StatusCode.UNIMPLEMENTED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DamagedIndexError: grpc.StatusCode.DATA_LOSS,
    NotReadError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


_LONGEST_WAIT_MS = 5_000
# Not from `grpc_health`: indexes that are opened without a server do without it.
_HEALTH = "grpc.health.v1.Health"

_Change = Callable[[Any], Any]


class StatusInterceptor(aio.ServerInterceptor):
    """Stands before all other interceptors: gives every call its id, and ends it with the status
    of what its method, or an interceptor, raised. Exceptions that are not ours say nothing.
    """

    def __init__(self, observers: Sequence[Observer] = (), *, peers: bool = False) -> None:
        """`observers` are told of calls that ended; `peers`: and by whom they were made."""
        self._observers = observers
        self._peers = peers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler, or give one that refuses."""
        method = handler_call_details.method
        call = call_from(method, handler_call_details.invocation_metadata)
        current.set(call)
        watch = _Watch(call, self._observers, peers=self._peers)
        try:
            handler = await continuation(handler_call_details)
        except Exception as error:
            return _refusing(error, watch)
        if handler is None:
            return _refusing(
                UnknownMethodError(
                    "This server does not know the method; it may be older than its caller."
                ),
                watch,
            )
        if handler.request_streaming or method.startswith(f"/{_HEALTH}/"):
            # Health ends its calls with statuses of its own, and supervisors ask all the time.
            watch = _Watch(call)
        return _wrapped(handler, watch)


class _Watch:
    """Over one call, until it ends."""

    def __init__(self, call: Call, observers: Sequence[Observer] = (), *, peers: bool = False):
        self._call = call
        self._observers = observers
        self._peers = peers

    @contextmanager
    def over(self, context: aio.ServicerContext[Any, Any]) -> Iterator[None]:
        """Tell of the call that ends with the block, and how."""
        call = self._call
        context.set_trailing_metadata(((REQUEST_ID, call.id),))
        self._note_peer(context)
        try:
            yield
        except Exception as error:
            code, call.reason = status_of(error) or _failure(call)
            call.code = code.name
            raise
        except BaseException:
            # The caller went away, or its deadline has passed.
            call.code = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            self._tell()

    def counted(self, serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        """The same serializer; its bytes are noted."""

        def run(message: Any) -> bytes:
            data = serialize(message)
            self._call.sent += len(data)
            return data

        return run

    async def abort(self, context: aio.ServicerContext[Any, Any], error: Exception) -> None:
        """End the call with the status of its error."""
        if isinstance(error, aio.AbortError):
            raise error
        code, sentence = self._status(error)
        trailing = self._trailing(error)
        # Its frames refer to it and to the index, which would stay until a collection.
        error.__traceback__ = None
        await context.abort(code, sentence, trailing)

    def refuse(self, context: aio.ServicerContext[Any, Any], error: Exception) -> None:
        """Have a call that has no method end so, and tell of it.

        Most calls are such where a server is asked too much, and an abort's exception, a cycle of
        references, has to be collected.
        """
        self._note_peer(context)
        code, sentence = self._status(error)
        self._call.code, self._call.reason = code.name, sentence
        context.set_code(code)
        context.set_details(sentence)
        context.set_trailing_metadata(self._trailing(error))
        self._tell()

    def _status(self, error: Exception) -> tuple[grpc.StatusCode, str]:
        status = status_of(error)
        if status is None:
            _log.error("A call failed in the server.", exc_info=error)
            return _failure(self._call)
        if status[0] is grpc.StatusCode.DATA_LOSS:
            _log.error("%s", status[1])
        return status

    def _trailing(self, error: Exception) -> tuple[tuple[str, str], ...]:
        return ((REQUEST_ID, self._call.id), *pushback_of(error))

    def _note_peer(self, context: aio.ServicerContext[Any, Any]) -> None:
        if self._peers:
            # Now: gRPC has let go of the connection when a stream is closed at last.
            self._call.peer = host_of(context.peer())

    def _tell(self) -> None:
        call = self._call
        call.seconds = perf_counter() - call.began
        for observer in self._observers:
            try:
                observer(call)
            except Exception:
                # The caller gets its answer all the same.
                _log.exception("A call could not be told of.")


def _failure(call: Call) -> tuple[grpc.StatusCode, str]:
    return (
        grpc.StatusCode.INTERNAL,
        f"The server failed to answer; its log says why, at request_id {call.id}.",
    )


def _wrapped(handler: Any, watch: _Watch) -> grpc.RpcMethodHandler[Any, Any]:
    # No deserializer: gRPC would run it outside of the watch and answer UNKNOWN where it raises.
    parse, serialize = handler.request_deserializer, watch.counted(handler.response_serializer)
    if handler.request_streaming:
        # Reflection alone, to which gRPC hands its requests.
        return grpc.stream_stream_rpc_method_handler(
            _streaming(handler.stream_stream, _as_it_is, serialize, watch), parse
        )
    if not handler.response_streaming:
        return grpc.unary_unary_rpc_method_handler(
            _single(handler.unary_unary, parse, serialize, watch)
        )
    if inspect.isasyncgenfunction(handler.unary_stream):
        return grpc.unary_stream_rpc_method_handler(
            _streaming(handler.unary_stream, parse, serialize, watch)
        )
    # gRPC's own health.Watch is no generator: it writes its replies to the context.
    return grpc.unary_stream_rpc_method_handler(
        _single(handler.unary_stream, parse, _as_it_is, watch),
        response_serializer=handler.response_serializer,
    )


def _refusing(error: Exception, watch: _Watch) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(_: object, context: aio.ServicerContext[Any, Any]) -> None:
        watch.refuse(context, error)

    # As a stream, whatever the method is: then gRPC receives no message that nobody asks for.
    return grpc.stream_stream_rpc_method_handler(refuse)


def _as_it_is(message: Any) -> Any:
    return message


def _single(
    method: Callable[..., Any], parse: _Change, serialize: _Change, watch: _Watch
) -> Callable[[Any, aio.ServicerContext[Any, Any]], Awaitable[Any]]:
    async def call(data: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            with watch.over(context):
                return serialize(await method(_request(parse, data), context))
        except Exception as error:
            return await watch.abort(context, error)

    return call


def _streaming(
    method: Callable[..., Any], parse: _Change, serialize: _Change, watch: _Watch
) -> Callable[[Any, aio.ServicerContext[Any, Any]], AsyncIterator[Any]]:
    async def call(data: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            with watch.over(context):
                # Closed at once where the caller goes away: it counts as open until then.
                async with aclosing(method(_request(parse, data), context)) as replies:
                    async for reply in replies:
                        yield serialize(reply)
        except Exception as error:
            await watch.abort(context, error)

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
