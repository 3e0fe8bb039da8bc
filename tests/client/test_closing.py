"""A client that is closed says so, whichever it is, and what was under way ends with an error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from client.test_aio import DENSE, QUESTIONS, awaited, plain
from client.test_connection import Failing, serving
from grpc import StatusCode
from synthetic import Synthetic

from vitscope.client import (
    AsyncClient,
    CancelledError,
    Client,
    UsageError,
    open_local,
)
from vitscope.v1 import query_pb2 as pb

PATIENCE = 60.0
CLOSED = r"^This client is closed; make another\.$"
ALL: dict[str, Callable[[Any], Any]] = QUESTIONS | {
    "analyze_image": lambda c: c.analyze_image(b"picture")
}


@pytest.fixture(params=["server", "folder"])
def closed(request: pytest.FixtureRequest, synthetic_server: str, synthetic: Synthetic) -> Client:
    there = request.param == "server"
    client = Client(synthetic_server) if there else open_local(synthetic.path)
    assert client.index().name == "zoo"
    client.close()
    client.close()
    return client


@pytest.mark.parametrize("name", ALL)
def test_every_question_to_a_closed_client(closed: Client, name: str) -> None:
    with pytest.raises(UsageError, match=CLOSED):
        plain(ALL[name](closed))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("asked", [True, False])
def test_every_question_to_a_closed_asynchronous_client(
    synthetic_server: str, name: str, asked: bool
) -> None:
    async def ask() -> None:
        client = AsyncClient(synthetic_server)
        if asked:
            assert (await client.index()).name == "zoo"
        await client.close()
        await client.close()
        await awaited(ALL[name](client))

    with pytest.raises(UsageError, match=CLOSED):
        asyncio.run(ask())


def test_a_client_that_never_asked(synthetic_server: str) -> None:
    client = Client(synthetic_server)
    client.close()
    with pytest.raises(UsageError, match=CLOSED):
        client.indexes()


def test_a_stream_that_is_begun_after_the_end(synthetic_server: str) -> None:
    client = Client(synthetic_server)
    stream = client.scores_stream(DENSE)
    client.close()
    with pytest.raises(UsageError, match=CLOSED):
        next(stream)


class Waiting(Failing):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(StatusCode.OK, 0)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def list_indexes(self, request: Any, context: Any) -> Any:
        self.reached.set()
        self.go_on.wait()
        return super().list_indexes(request, context)


@pytest.fixture
def waiting() -> Iterator[tuple[Waiting, str]]:
    service = Waiting()
    with serving(service) as address:
        yield service, address
        service.go_on.set()


async def reached(service: Waiting) -> None:
    """Wait for its first call."""
    async with asyncio.timeout(PATIENCE):
        while not service.reached.is_set():
            await asyncio.sleep(0.001)


def test_a_call_that_is_under_way(waiting: tuple[Waiting, str]) -> None:
    service, address = waiting
    client, found = Client(address), []

    def ask() -> None:
        with pytest.raises(CancelledError) as error:
            client.indexes()
        found.append(str(error.value))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert service.reached.wait(PATIENCE)
    client.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert found == [f"The call to {address} was cancelled before its answer."]


def test_an_asynchronous_call_that_is_under_way(waiting: tuple[Waiting, str]) -> None:
    """Its own task was cancelled by nobody: no `asyncio.CancelledError`."""
    service, address = waiting

    async def ask() -> list[Any]:
        client = AsyncClient(address)
        calls = [asyncio.create_task(client.indexes()) for _ in range(2)]
        await reached(service)
        await client.close()
        return await asyncio.gather(*calls, return_exceptions=True)

    for error in asyncio.run(ask()):
        assert type(error) is CancelledError
        assert str(error) == f"The call to {address} was cancelled before its answer."


def test_a_task_that_is_cancelled_stays_so(waiting: tuple[Waiting, str]) -> None:
    service, address = waiting

    async def ask() -> None:
        async with AsyncClient(address) as client:
            call = asyncio.create_task(client.indexes())
            await reached(service)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await client.indexes()

    asyncio.run(ask())


@pytest.fixture
def endless() -> Iterator[str]:
    """Address of a server whose sweeps have a first part, and no second one."""
    go_on = threading.Event()

    def sweep(request: Any, context: Any) -> Iterator[pb.TopImagesResponse]:
        yield pb.TopImagesResponse()
        go_on.wait()

    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(
        sweep,
        request_deserializer=pb.TopImagesOfChannelsRequest.FromString,
        response_serializer=pb.TopImagesResponse.SerializeToString,
    )
    methods = {"TopImagesOfChannels": handler}
    server = grpc.server(ThreadPoolExecutor(2))
    name = "vitscope.v1.ActivationService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    go_on.set()
    server.stop(None).wait()


def test_a_stream_that_is_under_way(endless: str) -> None:
    client = Client(endless)
    stream = client.top_images_of_channels("x")
    assert next(stream).channel == 0
    client.close()
    with pytest.raises(CancelledError):
        next(stream)


def test_an_asynchronous_stream_that_is_under_way(endless: str) -> None:
    async def ask() -> None:
        client = AsyncClient(endless)
        stream: AsyncIterator[Any] = client.top_images_of_channels("x")
        assert (await anext(stream)).channel == 0
        await client.close()
        with pytest.raises(CancelledError):
            await anext(stream)

    asyncio.run(ask())
