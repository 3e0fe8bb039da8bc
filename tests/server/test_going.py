"""A query stops where its caller has gone, by a deadline, by itself or with the connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from threading import Event
from typing import Any

import grpc
import pytest
from synthetic import build

from vitscope.server.admission import Gates
from vitscope.server.going import CallerGoneError, check_caller, run_for
from vitscope.server.queries.boxes import box_scores
from vitscope.server.queries.channels import similar_channels, top_channels
from vitscope.server.queries.compare import changed_channels
from vitscope.server.queries.directions import Measure, Question, Weights, top_images_along
from vitscope.server.queries.filters import ALL, ImageFilter
from vitscope.server.queries.images import similar_images
from vitscope.server.queries.maps import Grid, patch_maps
from vitscope.server.queries.scores import scores
from vitscope.server.served import Served
from vitscope.server.service import ActivationService
from vitscope.store.generation import Generation, open_generation
from vitscope.v1 import query_pb2 as pb
from vitscope.v1 import service_pb2_grpc

_PATIENCE = 60.0


class Endless(ActivationService):
    """Answers one method with work that ends only where nobody waits for it."""

    def __init__(self, gates: Gates) -> None:
        super().__init__(Served({}), gates)
        self.begun = Event()
        self.ended = Event()

    async def _describe(self, name: str, request: Any, context: Any) -> Any:
        """Until its caller has gone."""
        return await self._gates["light"].run(self._work)

    def _work(self) -> pb.ListIndexesResponse:
        self.begun.set()
        try:
            limit = time.monotonic() + _PATIENCE
            while time.monotonic() < limit:
                check_caller()
                time.sleep(0.001)
        except CallerGoneError:
            self.ended.set()
            raise
        return pb.ListIndexesResponse()


async def _deadline(stub: Any, service: Endless, channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.ListIndexes(pb.ListIndexesRequest(), timeout=0.5)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def _cancelled(stub: Any, service: Endless, channel: grpc.aio.Channel) -> None:
    call = stub.ListIndexes(pb.ListIndexesRequest())
    await asyncio.to_thread(service.begun.wait, _PATIENCE)
    assert call.cancel()


async def _closed(stub: Any, service: Endless, channel: grpc.aio.Channel) -> None:
    call = stub.ListIndexes(pb.ListIndexesRequest())
    await asyncio.to_thread(service.begun.wait, _PATIENCE)
    await channel.close()
    assert call.done()


@pytest.mark.parametrize("leave", [_deadline, _cancelled, _closed])
def test_work_ends_where_its_caller_leaves(
    leave: Callable[[Any, Endless, grpc.aio.Channel], Awaitable[None]],
) -> None:
    async def run() -> bool:
        with closing(Gates(1, {}, lambda: None)) as gates:
            service: Any = Endless(gates)
            server = grpc.aio.server()
            service_pb2_grpc.add_ActivationServiceServicer_to_server(service, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
            await leave(service_pb2_grpc.ActivationServiceStub(channel), service, channel)
            ended: bool = await asyncio.to_thread(service.ended.wait, _PATIENCE / 2)
            await channel.close()
            await server.stop(None)
        return ended

    assert asyncio.run(run())


def test_work_ends_where_the_server_does() -> None:
    async def run() -> bool:
        with closing(Gates(1, {}, lambda: None)) as gates:
            service: Any = Endless(gates)
            server = grpc.aio.server()
            service_pb2_grpc.add_ActivationServiceServicer_to_server(service, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub: Any = service_pb2_grpc.ActivationServiceStub(channel)
                # The second one waits for the thread.
                calls = [stub.ListIndexes(pb.ListIndexesRequest()) for _ in range(2)]
                await asyncio.to_thread(service.begun.wait, _PATIENCE)
                await server.stop(0.1)
                done = await asyncio.gather(*calls, return_exceptions=True)
                assert [type(each) for each in done] == [grpc.aio.AioRpcError] * 2
        ended: bool = service.ended.is_set()
        return ended

    assert asyncio.run(run())


def test_work_that_waits_for_its_caller_goes_on() -> None:
    run_for(Event(), check_caller)
    check_caller()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    return open_generation(build(tmp_path_factory.mktemp("going") / "zoo", complete=True).path)


def along(held: Generation, measure: Measure) -> object:
    question = Question(measure, asked=ImageFilter(rows=(1, 2)))
    return top_images_along(held, "blocks.1.mlp", Weights([1], [1.0]), question)


@pytest.mark.parametrize(
    "ask",
    [
        lambda held: box_scores(held, "blocks.0.mlp", [], (), ALL),
        lambda held: box_scores(held, "blocks.1.mlp", [], (), ALL),
        lambda held: top_channels(held, 1, [], "mean", 2, percentiles=True),
        lambda held: similar_channels(held, "blocks.0.mlp", 3, 2, ["blocks.1.mlp"]),
        lambda held: patch_maps(held, [], [Grid("blocks.0.mlp", [1], [0, 1])]),
        lambda held: similar_images(held, "blocks.1.mlp", 1, 2, exact=True),
        lambda held: list(scores(held, "blocks.1.mlp", "mean", [])),
        lambda held: changed_channels(
            held, held, "blocks.1.mlp", "mean", ALL, "effect", None, lowest=False
        ),
        lambda held: along(held, "cosine"),
        lambda held: along(held, "projection"),
    ],
)
def test_long_queries_ask_whether_somebody_waits(
    complete: Generation, ask: Callable[[Generation], object]
) -> None:
    gone = Event()

    def leave_and_ask() -> object:
        gone.set()
        return ask(complete)

    ask(complete)
    with pytest.raises(CallerGoneError):
        run_for(gone, leave_and_ask)
