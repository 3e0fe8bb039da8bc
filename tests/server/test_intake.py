"""Calls that are refused before gRPC does anything more for them: the server's end is the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from grpc import StatusCode, aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from vitscope.server.admission import Gates
from vitscope.server.calls import REQUEST_ID, Call
from vitscope.server.early import EarlyRefusals
from vitscope.server.errors import OverloadedError
from vitscope.server.guard import TokenInterceptor
from vitscope.server.intake import Refusal, make_server
from vitscope.server.status import StatusInterceptor
from vitscope.server.tokens import TokenFile, line_of
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import (
    ActivationServiceServicer,
    ActivationServiceStub,
    add_ActivationServiceServicer_to_server,
)

CHECK = "/grpc.health.v1.Health/Check"
PATIENCE = 60.0


class Counting(health.aio.HealthServicer):  # type: ignore[misc]
    """Counts what comes to its method."""

    came = 0

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.came += 1
        return await super().Check(request, context)


def over_a_server(
    refusal_of: Callable[[str], Refusal | None],
    ask: Callable[[aio.Channel, Counting, list[Call]], Any],
    *more: aio.ServerInterceptor,
) -> None:
    async def run() -> None:
        told: list[Call] = []
        interceptors = [StatusInterceptor([told.append]), *more]
        server = make_server(aio.server, refusal_of, interceptors=interceptors)
        servicer, nothing = Counting(), cast(Any, ActivationServiceServicer)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        add_ActivationServiceServicer_to_server(nothing(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await ask(channel, servicer, told)
        await server.stop(0)

    asyncio.run(run())


def too_many() -> OverloadedError:
    return OverloadedError("That is one too many; ask again in a moment.", 20)


async def ended(call: Any) -> tuple[StatusCode, str, dict[str, str]]:
    code = await asyncio.wait_for(call.code(), PATIENCE)
    return code, await call.details(), dict(await call.trailing_metadata())


def test_a_refused_call_is_told_so_and_reaches_no_method() -> None:
    refused = {CHECK}

    async def ask(channel: aio.Channel, servicer: Counting, told: list[Call]) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        for number in range(50):
            call = stub.Check(
                health_pb2.HealthCheckRequest(), metadata=((REQUEST_ID, f"id-{number}"),)
            )
            code, details, trailing = await ended(call)
            assert (code, details) == (StatusCode.RESOURCE_EXHAUSTED, str(too_many()))
            assert trailing == {REQUEST_ID: f"id-{number}", "grpc-retry-pushback-ms": "20"}
        assert servicer.came == 0
        assert [(call.id, call.code) for call in told] == [
            (f"id-{number}", "RESOURCE_EXHAUSTED") for number in range(50)
        ]
        refused.clear()
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        assert servicer.came == 1

    over_a_server(lambda method: too_many if method in refused else None, ask)


def test_no_request_is_waited_for() -> None:
    async def silence() -> AsyncIterator[bytes]:
        await asyncio.sleep(PATIENCE)
        yield b""

    async def ask(channel: aio.Channel, servicer: Counting, _: list[Call]) -> None:
        ask_for: Any = channel.stream_unary(CHECK)
        call = ask_for(silence())
        code, _details, _trailing = await ended(call)
        assert (code, servicer.came) == (StatusCode.RESOURCE_EXHAUSTED, 0)

    over_a_server(lambda _: too_many, ask)


def test_a_caller_that_is_gone_before_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    came, leaving = [], asyncio.Event()

    def refusal_of(method: str) -> Refusal:
        came.append(method)
        return too_many

    class Slow(aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            if len(came) <= 50:
                await leaving.wait()
            return await continuation(details)

    async def ask(channel: aio.Channel, servicer: Counting, told: list[Call]) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        calls = [stub.Check(health_pb2.HealthCheckRequest()) for _ in range(50)]
        while len(came) < 50:
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        # Its end is known to the server before that of the others.
        code, _details, _trailing = await ended(stub.Check(health_pb2.HealthCheckRequest()))
        assert (code, servicer.came) == (StatusCode.RESOURCE_EXHAUSTED, 0)
        leaving.set()
        while len(told) < 51:
            await asyncio.sleep(0.01)

    over_a_server(refusal_of, ask, Slow())
    assert caplog.text == ""


def test_who_may_not_ask_is_told_so_and_takes_no_place(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(line_of("ann", "secret") + "\n")
    gates = Gates(1, {}, lambda: None)
    gate = gates["light"]
    # Crowded, and at a moment that lasts.
    gate.crowded, gate._due, gate._clock = True, float("inf"), lambda: 100.0
    early = EarlyRefusals(gates, live=False)

    async def ask(channel: aio.Channel, _: Counting, told: list[Call]) -> None:
        stub = ActivationServiceStub(channel)
        known = (("authorization", "Bearer secret"),)

        async def code(metadata: Any = ()) -> StatusCode:
            found, _details, _trailing = await ended(
                stub.TopImages(pb.TopImagesRequest(), metadata=metadata)
            )
            return found

        for full in (0, 1):
            gate.in_hand = full
            assert await code() is StatusCode.UNAUTHENTICATED
            assert (gate.busy(), gate.refused) == (full, 0)
        assert await code(known) is StatusCode.RESOURCE_EXHAUSTED
        assert (gate.refused, told[-1].token) == (1, "ann")
        gate.in_hand = 0
        # Let in, and the method is none here.
        assert await code(known) is StatusCode.INTERNAL
        assert (gate.busy(), gate.refused) == (1, 1)
        assert await code(known) is StatusCode.RESOURCE_EXHAUSTED

    over_a_server(early.refusal_of, ask, TokenInterceptor(TokenFile(path)), early)
    gates.close()


@pytest.mark.parametrize("path", ["/vitscope.v1.ActivationService/Nothing", "/a/b"])
def test_a_method_that_is_not_there(path: str) -> None:
    async def ask(channel: aio.Channel, _: Counting, told: list[Call]) -> None:
        ask_for: Any = channel.unary_unary(path)
        code, details, trailing = await ended(ask_for(b""))
        assert code is StatusCode.UNIMPLEMENTED
        assert "does not know the method" in details
        assert trailing == {REQUEST_ID: told[0].id}

    over_a_server(lambda _: None, ask)


@pytest.mark.parametrize(
    ("live", "full", "refused"),
    [
        (False, ["light"], ["TopImages", "TopChannels"]),
        (True, ["light"], ["TopImages"]),
        (True, ["light", "model"], ["TopImages", "TopChannels"]),
        (False, ["scan"], ["GetBoxScores"]),
        (False, ["light", "scan"], ["TopImages", "TopChannels", "GetBoxScores", "SimilarImages"]),
        (False, [], []),
    ],
)
def test_what_could_still_be_taken_is_let_in(
    live: bool, full: list[str], refused: list[str]
) -> None:
    async def run() -> None:
        gates = Gates(1, {}, lambda: None)
        for cost in full:
            gates[cost].in_hand = gates[cost].limits.in_hand  # type: ignore[index]
        refusal_of = EarlyRefusals(gates, live=live).refusal_of
        asked = ["TopImages", "TopChannels", "GetBoxScores", "SimilarImages", "GetIndex"]
        found = [name for name in asked if refusal_of(f"/vitscope.v1.ActivationService/{name}")]
        assert found == refused
        assert refusal_of(CHECK) is None
        gates.close()

    asyncio.run(run())
