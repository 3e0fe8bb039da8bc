"""How the asynchronous client calls and is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from vitscope.client.asking import Begun, another, closed
from vitscope.client.connection import Connection, with_request_id
from vitscope.client.errors import (
    DeadlineError,
    UnavailableError,
    UsageError,
    from_status,
    rpc_errors,
)
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

if TYPE_CHECKING:
    from vitscope.v1.service_pb2_grpc import ActivationServiceAsyncStub

_T = TypeVar("_T")


class AsyncAsking(Begun):
    """Calls within one event loop, many at a time."""

    def _begin(self, connection: Connection) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError(
                "An AsyncClient belongs to an event loop; make it inside of a coroutine."
            ) from None
        self._another = partial(another, connection)
        self._connection = connection
        self._looking: asyncio.Future[str] | None = None
        self._channel: grpc.aio.Channel | None = None
        self._methods: ActivationServiceAsyncStub | None = None
        self._streams: set[Any] = set()
        self._closed = False

    async def _stub(self) -> ActivationServiceAsyncStub:
        """The methods; names of several servers are looked up at the first question."""
        if self._methods is None and not self._closed:
            with self._errors():
                target = await self._looked_up()
            if self._methods is None and not self._closed:
                self._channel = self._connection.aio_channel(target)
                self._methods = ActivationServiceStub(self._channel)
        if self._methods is None or self._closed:
            raise closed()
        return self._methods

    async def _looked_up(self) -> str:
        """What is dialled; looked up once for all who ask meanwhile."""
        if len(self._connection.addresses) == 1:
            return self._connection.target()
        looking = self._looking = self._looking or _in_daemon(self._connection.target)
        try:
            # One of those who wait may be given up.
            return await asyncio.shield(looking)
        except (DeadlineError, UnavailableError):
            if self._looking is looking:
                self._looking = None
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        server = self._connection.server
        try:
            with rpc_errors(server):
                yield
        except grpc.aio.UsageError:
            # gRPC's own, of a channel that was closed just now.
            raise closed() from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            # Nobody has cancelled the caller's task.
            raise from_status(grpc.StatusCode.CANCELLED, "", server) from None

    async def _ask(self, method: Callable[..., Awaitable[_T]], request: Message) -> _T:
        with self._errors():
            return await method(request, **with_request_id(self._connection.told))

    async def _each(self, method: Callable[..., Any], request: Message) -> AsyncIterator[Any]:
        with self._errors():
            call = method(request, **with_request_id(self._connection.told))
            self._streams.add(call)
            try:
                async for reply in call:
                    yield reply
            finally:
                # Where the loop was left early, the server stops too.
                call.cancel()
                self._streams.discard(call)

    async def close(self) -> None:
        """Let the connection go; calls under way end with `CancelledError`, later ones are refused.

        Questions to a closed client raise `UsageError`.
        """
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        # Older versions of gRPC overlook those that nobody is reading just now.
        for call in tuple(self._streams):
            call.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _in_daemon(work: Callable[[], _T]) -> asyncio.Future[_T]:
    """What `work` gives, from a thread that nobody waits for: neither a loop's end nor a process's.

    The threads of a loop's executor are waited for by both.
    """
    future: Future[_T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    awaited = asyncio.wrap_future(future)
    # That it failed is no news where all who asked were given up.
    awaited.add_done_callback(lambda done: done.cancelled() or done.exception())
    return awaited
