"""How the clients ask: what both begin with, and how the synchronous one calls and is closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc
from google.protobuf.message import Message

from vitscope.client.answer import A, Source, with_source
from vitscope.client.connection import RETRIES, Connection, Retries, with_request_id
from vitscope.client.errors import UsageError, rpc_errors
from vitscope.client.trust import Tls
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

if TYPE_CHECKING:
    from vitscope.client.client import Client

_T = TypeVar("_T")


def closed() -> UsageError:
    """What is raised once a client is closed."""
    return UsageError("This client is closed; make another.")


class Begun:
    """What both clients are made of, and what their answers are told."""

    _another: Callable[[], Client]
    """Makes one that asks the same, for the pictures of an answer."""

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        timeout: float = 30.0,
        tls: Tls | None = None,
        token: str | None = None,
        retries: Retries = RETRIES,
    ) -> None:
        self._begin(Connection(address, timeout, tls, token, retries))

    @classmethod
    def over(cls, connection: Connection) -> Self:
        """A client of a connection that was described before."""
        client = cls.__new__(cls)
        client._begin(connection)
        return client

    def _begin(self, connection: Connection) -> None:
        raise NotImplementedError

    def _with_source(self, request: Any, answer: A) -> A:
        """The answer, told where its pictures come from."""
        other = getattr(request, "other", "")
        return with_source(answer, Source(self._another, request.index, other))


def another(connection: Connection) -> Client:
    """A synchronous client of the same server, whose files are read anew."""
    from vitscope.client.client import Client

    return Client.over(replace(connection))


class Service(Protocol):
    """Who answers the synchronous client."""

    told: Mapping[str, Any]
    """What goes with every call."""
    another: Callable[[], Client]

    @property
    def stub(self) -> ActivationServiceStub:
        """Its methods."""

    def errors(self) -> AbstractContextManager[None]:
        """What goes wrong within becomes a `VitscopeError`."""

    def close(self) -> None:
        """Let it go."""


class Remote:
    """A server, or several; names of several are looked up at the first question."""

    def __init__(self, connection: Connection) -> None:
        self.told = connection.told
        self.another: Callable[[], Client] = partial(another, connection)
        self._connection = connection
        self._lock = Lock()
        self._channel: grpc.Channel | None = None
        self._stub: ActivationServiceStub | None = None
        self._closed = False

    @property
    def stub(self) -> ActivationServiceStub:
        """Raises `UnavailableError` or `DeadlineError` where no name is known."""
        if self._stub is None:
            # Not under the lock, since names may take long: nobody who closes waits for them.
            target = self._connection.target()
            with self._lock:
                if self._closed:
                    raise closed()
                if self._stub is None:
                    self._channel = self._connection.channel(target)
                    self._stub = ActivationServiceStub(self._channel)
        return self._stub

    def errors(self) -> AbstractContextManager[None]:
        """Of gRPC."""
        return rpc_errors(self._connection.server)

    def close(self) -> None:
        """Let the connection go."""
        with self._lock:
            self._closed = True
            if self._channel is not None:
                self._channel.close()


class Asking(Begun):
    """Calls one after the other, in the thread of the caller."""

    _service: Service | None

    def _begin(self, connection: Connection) -> None:
        self._ask_of(Remote(connection))

    def _ask_of(self, service: Service) -> None:
        self._service = service
        self._another = service.another

    @property
    def _open(self) -> Service:
        if self._service is None:
            raise closed()
        return self._service

    @property
    def _stub(self) -> ActivationServiceStub:
        return self._open.stub

    def _ask(self, method: Callable[..., _T], request: Message) -> _T:
        with self._errors(service := self._open):
            return method(request, **with_request_id(service.told))

    def _each(self, method: Callable[..., Iterator[_T]], request: Message) -> Iterator[_T]:
        with self._errors(service := self._open):
            yield from method(request, **with_request_id(service.told))

    @contextmanager
    def _errors(self, service: Service) -> Iterator[None]:
        try:
            with service.errors():
                yield
        except ValueError:
            # gRPC's own, where another thread closes the client just now.
            if self._service is not None:
                raise
            raise closed() from None

    def close(self) -> None:
        """Let the connection go; calls under way end with `CancelledError`, later ones are refused.

        Questions to a closed client raise `UsageError`.
        """
        service, self._service = self._service, None
        if service is not None:
            service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
