"""Requests and replies beyond what either end takes: said as such, and not tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from client.test_aio import awaited, plain

from vitscope.client import AsyncClient, Client, InvalidRequestError, Retries, ServerError
from vitscope.client.errors import Server, VitscopeError, from_status
from vitscope.v1 import query_pb2 as pb

PATIENCE = 60.0
# Who tries again with this has no answer before the deadline.
NEVER_AGAIN = Retries(attempts=5, first_wait=3600.0, longest_wait=3600.0)
Question = Callable[[Any], Any]

REQUEST = (
    "The request is larger than a server takes (4 MiB); ask for fewer rows or channels at a time."
)


def both_say(address: str, question: Question, kind: type[VitscopeError]) -> str:
    """The sentence of both clients."""

    async def ask() -> None:
        async with AsyncClient(address, timeout=PATIENCE, retries=NEVER_AGAIN) as client:
            await awaited(question(client))

    with pytest.raises(VitscopeError) as theirs:
        asyncio.run(ask())
    with (
        Client(address, timeout=PATIENCE, retries=NEVER_AGAIN) as client,
        pytest.raises(VitscopeError) as ours,
    ):
        plain(question(client))
    assert type(ours.value) is type(theirs.value) is kind
    assert str(ours.value) == str(theirs.value)
    return str(ours.value)


REQUESTS: dict[str, Question] = {
    "one reply": lambda client: client.top_images("x" * (4 << 20), 0),
    "stream": lambda client: client.images([1 << 62] * (1 << 19)),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_a_server_does_not_take(synthetic_server: str, name: str) -> None:
    assert both_say(synthetic_server, REQUESTS[name], InvalidRequestError) == REQUEST


@pytest.fixture
def generous() -> Iterator[tuple[str, list[str]]]:
    """Address of a server whose replies are of 65 MiB, and the calls that it has had."""
    calls: list[str] = []
    reply = bytes(65 << 20)

    def one(request: Any, context: Any) -> bytes:
        calls.append("one reply")
        return reply

    def several(request: Any, context: Any) -> Iterator[bytes]:
        calls.append("stream")
        yield reply

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ListIndexes": grpc.unary_unary_rpc_method_handler(one),
        "GetImages": grpc.unary_stream_rpc_method_handler(several),
    }
    server = grpc.server(ThreadPoolExecutor(2))
    name = pb.DESCRIPTOR.package + ".ActivationService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", calls
    finally:
        server.stop(None).wait()


REPLIES: dict[str, Question] = {
    "one reply": lambda client: client.indexes(),
    "stream": lambda client: client.images([1]),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_that_this_client_does_not_take(generous: tuple[str, list[str]], name: str) -> None:
    address, calls = generous
    assert both_say(address, REPLIES[name], ServerError) == (
        f"The reply of the server at {address} is larger than this client takes; ask for fewer "
        "rows or channels at a time."
    )
    assert calls == [name] * 2


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ("Received message larger than max (5242885 vs. 4194304)", InvalidRequestError),
        ("SERVER: Received message larger than max (5242885 vs. 4194304)", InvalidRequestError),
        ("CLIENT: Received message larger than max (73400320 vs. 67108864)", ServerError),
    ],
)
def test_what_versions_of_grpc_say(details: str, kind: type[VitscopeError]) -> None:
    error = from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, details, Server("127.0.0.1:1"), "id-7")
    assert type(error) is kind
    assert error.request_id == "id-7"
