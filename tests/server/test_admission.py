"""Calls beyond what a server takes at a time are refused at once; others wait for their threads."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server.gates import PATIENCE, gate, settled, wait
from server.refusals import check_sentence
from started import ServerProcess, run_vitscope
from synthetic import Synthetic, build

from vitscope.server.admission import PUSHBACK_MS, Gates
from vitscope.server.errors import OverloadedError
from vitscope.server.going import CallerGoneError, check_caller
from vitscope.server.served import Served, index_paths
from vitscope.server.service import ActivationService
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]


def test_as_many_are_in_hand_as_may_be_and_no_more() -> None:
    async def run() -> None:
        one, over = gate(2, 5), Event()
        calls = [asyncio.create_task(one.run(partial(wait, over))) for _ in range(5)]
        await settled(lambda: one.in_hand == 5)
        for _ in range(3):
            with pytest.raises(OverloadedError, match="has 5 calls of the class 'scan' in hand"):
                await one.run(partial(wait, over))
        # The next part of a stream is not refused.
        again = asyncio.create_task(one.run(partial(wait, over), again=True))
        await settled(lambda: one.in_hand == 6)
        over.set()
        assert await asyncio.gather(*calls, again) == ["done"] * 6
        assert one.in_hand == 0
        assert await one.run(lambda: 7) == 7
        one.close()

    asyncio.run(run())


def test_what_raises_leaves_room() -> None:
    async def run() -> None:
        one = gate(1, 1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await one.run(lambda: 1 // 0)
            assert one.in_hand == 0
        one.close()

    asyncio.run(run())


def test_a_call_that_was_given_up_is_in_hand_until_its_thread_notices() -> None:
    async def run() -> None:
        one, begun, hold = gate(1, 2), Event(), Event()

        def stubborn() -> None:
            begun.set()
            wait(hold)
            check_caller()

        busy = asyncio.create_task(one.run(stubborn))
        await settled(begun.is_set)
        waiting = asyncio.create_task(one.run(stubborn))
        await settled(lambda: one.in_hand == 2)
        for task in (busy, waiting):
            task.cancel()
        await asyncio.wait([busy, waiting])
        # Nor does the one that never began leave before a thread has come to it.
        assert one.in_hand == 2
        begun.clear()
        hold.set()
        await settled(lambda: one.in_hand == 0)
        assert not begun.is_set()
        one.close()

    asyncio.run(run())


def test_an_end_gives_up_what_is_in_hand() -> None:
    begun, noticed = Event(), Event()

    def long() -> None:
        begun.set()
        limit = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < limit:
                check_caller()
                time.sleep(0.001)
        except CallerGoneError:
            noticed.set()
            raise

    async def run() -> None:
        one = gate(1, 2)
        # The second one never gets its thread.
        calls = [asyncio.create_task(one.run(long)) for _ in range(2)]
        await settled(begun.is_set)
        one.close()
        assert noticed.is_set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in done] == [CallerGoneError, asyncio.CancelledError]

    asyncio.run(run())


def test_what_is_not_taken_up_is_not_in_hand() -> None:
    async def run() -> None:
        one = gate(1, 1)
        one.close()
        for _ in range(3):
            with pytest.raises(RuntimeError, match="shutdown"):
                await one.run(lambda: 1)
            assert one.in_hand == 0

    asyncio.run(run())


def test_so_many_streams_are_open_and_no_more() -> None:
    one = gate(1, 2)
    with ExitStack() as streams:
        for _ in range(16):
            streams.enter_context(one.stream())
        with pytest.raises(OverloadedError, match="has 16 streams of the class 'scan' open"):
            streams.enter_context(one.stream())
    assert (one.streams, one.refused) == (0, 1)
    with pytest.raises(ZeroDivisionError), one.stream():
        _ = 1 // 0
    assert one.streams == 0
    one.close()


def test_a_stream_is_open_until_its_end_or_its_callers(synthetic: Synthetic) -> None:
    async def run() -> None:
        with closing(Gates(1, {"scan": 1}, lambda: None)) as gates:
            service: Any = ActivationService(Served(index_paths([synthetic.path])), gates)
            asked = pb.GetScoresRequest(layer="blocks.0.mlp")
            streams = [service.GetScores(asked, None) for _ in range(8)]
            for each in streams:
                await anext(each)
            # None of them is in hand, but they are open.
            assert (gates["scan"].in_hand, gates["scan"].streams) == (0, 8)
            with pytest.raises(OverloadedError):
                await anext(service.GetScores(asked, None))
            await streams.pop().aclose()
            last = service.GetScores(asked, None)
            assert len([each async for each in last]) > 0
            for each in streams:
                await each.aclose()
            assert gates["scan"].streams == 0

    asyncio.run(run())


def test_a_server_refuses_what_is_too_much_and_goes_on(tmp_path: Path, serve: Serve) -> None:
    truth = build(tmp_path / "zoo", complete=True, rows=400)
    server = serve(truth.path, options=("--in-hand", "scan=2"))
    asked = pb.GetBoxScoresRequest(layer="blocks.0.mlp")
    light = pb.TopImagesRequest(layer="blocks.0.mlp", channel=4, k=5)

    async def burst(stub: Any, count: int) -> Counter[StatusCode]:
        async def one() -> StatusCode:
            call = stub.GetBoxScores(asked, timeout=PATIENCE)
            code: StatusCode = await call.code()
            if code is StatusCode.OK:
                assert (await call).channels == right.channels
                return code
            check_sentence(await call.details())
            trailing = dict(await call.trailing_metadata())
            assert trailing["grpc-retry-pushback-ms"] == str(PUSHBACK_MS["scan"])
            return code

        return Counter(await asyncio.gather(*(one() for _ in range(count))))

    async def run() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = ActivationServiceStub(channel)
            checks = health_pb2_grpc.HealthStub(channel)
            seen: Counter[StatusCode] = Counter()
            # As many as it takes until one comes too many.
            for _ in range(100):
                storm = asyncio.create_task(burst(stub, 64))
                # What is light is answered meanwhile, and so is whether the server is well.
                assert len((await stub.TopImages(light, timeout=PATIENCE)).images) == 5
                well = await checks.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
                assert well.status == health_pb2.HealthCheckResponse.SERVING
                seen += await storm
                if seen[StatusCode.RESOURCE_EXHAUSTED]:
                    break
            assert set(seen) == {StatusCode.OK, StatusCode.RESOURCE_EXHAUSTED}
            assert (await burst(stub, 1))[StatusCode.OK] == 1

    with grpc.insecure_channel(server.address) as channel:
        right = ActivationServiceStub(channel).GetBoxScores(asked, timeout=PATIENCE)
    asyncio.run(run())


def test_limits_that_cannot_be(synthetic: Synthetic) -> None:
    for given, word in (
        ("heavy=3", "the classes are light, scan, model"),
        ("light=0", "--in-hand light=0 cannot be"),
        ("light", "has 'light', which is no CLASS=N"),
        ("light=x", "which is no CLASS=N"),
        ("light=2,", "has '', which is no CLASS=N"),
    ):
        done = run_vitscope("serve", synthetic.path, "--listen", "127.0.0.1:0", "--in-hand", given)
        assert (done.returncode, done.stdout) == (6, "")
        assert word in done.stderr
