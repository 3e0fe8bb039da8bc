"""The id of a call: given by the caller, and told by errors."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from server.broken import PROGRAM
from started import VITSCOPE, ServerProcess
from synthetic import Synthetic

from vitscope.client import (
    AsyncClient,
    Client,
    NotFoundError,
    ServerError,
    UnavailableError,
    UsageError,
    VitscopeError,
    open_local,
    request_id,
)
from vitscope.client.errors import Server, from_status, request_id_of

LAYER = "blocks.0.mlp"


@pytest.fixture(scope="module")
def address(synthetic: Synthetic, serve: Callable[..., ServerProcess]) -> str:
    return serve(synthetic.path, program=PROGRAM).address


ASK: list[Callable[[Any], Any]] = [
    lambda client: client.channel_statistics("nowhere"),
    lambda client: client.scores_stream("nowhere"),
    lambda client: client.top_images(LAYER, 1),
    lambda client: client.images([1]),
]


def error_of(address: str, ask: Callable[[Any], Any]) -> VitscopeError:
    with Client(address) as client, pytest.raises(VitscopeError) as caught:
        list(ask(client))
    return caught.value


def error_of_async(address: str, ask: Callable[[Any], Any]) -> VitscopeError:
    async def run() -> None:
        async with AsyncClient(address) as client:
            answer = ask(client)
            if isinstance(answer, Awaitable):
                await answer
            else:
                [_ async for _ in answer]

    with pytest.raises(VitscopeError) as caught:
        asyncio.run(run())
    return caught.value


@pytest.mark.parametrize("find", [error_of, error_of_async])
@pytest.mark.parametrize("ask", ASK)
def test_errors_have_the_id(
    address: str,
    find: Callable[[str, Callable[[Any], Any]], VitscopeError],
    ask: Callable[[Any], Any],
) -> None:
    made = find(address, ask)
    assert re.fullmatch("[0-9a-f]{16}", made.request_id or "")
    assert find(address, ask).request_id != made.request_id
    with request_id("mine"):
        told = find(address, ask)
    assert told.request_id == "mine"
    assert type(told) in (NotFoundError, ServerError)
    if isinstance(told, ServerError):
        assert str(told) == (
            f"The server at {address} failed: The server failed to answer; its log says why, at "
            "request_id mine."
        )
    else:
        assert "mine" not in str(told)
    assert find(address, ask).request_id not in (None, "mine")


def test_a_failure_that_does_not_name_its_id_is_told_with_it() -> None:
    for code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
        error = from_status(code, "Oh no.", Server("127.0.0.1:1"), "mine")
        assert str(error) == "The server at 127.0.0.1:1 failed: Oh no (request_id mine)."
        assert error.request_id == "mine"
    error = from_status(grpc.StatusCode.NOT_FOUND, "No row 9.", Server("127.0.0.1:1"), "mine")
    assert (str(error), error.request_id) == ("No row 9.", "mine")


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        (None, None),
        ((("other", "mine"),), None),
        ((("other", "x"), ("x-request-id", "mine")), "mine"),
        # Servers may be of any make.
        ((("x-request-id", "two\x1b[31m words"),), None),
        ((("x-request-id", "x" * 129),), None),
        ((("x-request-id", b"mine"),), None),
    ],
)
def test_an_odd_id_of_a_server_is_not_shown(metadata: Any, found: str | None) -> None:
    assert request_id_of(metadata) == found


@pytest.mark.parametrize("text", ["", "two words", "x" * 129, "naïve", "a\n"])
def test_an_id_that_a_server_would_replace_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no request id"), request_id(text):
        pass


def test_threads_of_control_keep_theirs_apart(address: str) -> None:
    async def failed(client: AsyncClient, name: str) -> str | None:
        with request_id(name):
            await asyncio.sleep(0)
            with pytest.raises(NotFoundError) as caught:
                await client.channel_statistics("nowhere")
        return caught.value.request_id

    async def run() -> list[str | None]:
        async with AsyncClient(address) as client:
            return await asyncio.gather(*(failed(client, name) for name in "abcde"))

    assert asyncio.run(run()) == list("abcde")


def test_where_no_server_answers_there_is_none(synthetic: Synthetic) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(UnavailableError) as lost, request_id("a"):
        client.indexes()
    assert lost.value.request_id is None
    with (
        open_local(synthetic.path) as local,
        pytest.raises(NotFoundError) as error,
        request_id("a"),
    ):
        local.channel_statistics("nowhere")
    assert error.value.request_id is None


def test_the_command_line_shows_it(address: str) -> None:
    command = [str(VITSCOPE), "top-images", "--server", address]
    command += ["--layer", LAYER, "--channel", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 5
    assert re.search(r"at request_id [0-9a-f]{16}\.\n$", done.stderr)
