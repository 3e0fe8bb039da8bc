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
from server.refusals import check_sentence
from synthetic import ServerProcess, Synthetic, build, run_vitscope

from vitscope.server.admission import PUSHBACK_MS, Clock, Crowd, Gate, Gates, Limits
from vitscope.server.calls import Call, current
from vitscope.server.errors import OverloadedError
from vitscope.server.going import CallerGoneError, check_caller
from vitscope.server.served import Served, index_paths
from vitscope.server.service import ActivationService
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]
PATIENCE = 60.0


class Hand:
    """A clock's, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def gate(
    threads: int, in_hand: int, crowd: Crowd | None = None, clock: Clock = time.monotonic
) -> Gate:
    return Gate("scan", Limits(threads, in_hand), lambda: None, crowd, clock)


def wait(until: Event) -> str:
    assert until.wait(PATIENCE)
    return "done"


async def settled(what: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE * 100)):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came about")


class Asking:
    """Calls of one class that last until they are told to end."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._over = Event()
        self._running: list[asyncio.Task[str]] = []

    async def once(self) -> bool:
        """Whether one more is taken."""
        refused = self.gate.refused
        task = asyncio.create_task(self.gate.run(partial(wait, self._over)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self.gate.refused > refused:
            with pytest.raises(OverloadedError):
                await task
            return False
        self._running.append(task)
        return True

    async def taken(self) -> int:
        """How many are in hand when one more is too many."""
        while await self.once():
            pass
        return self.gate.in_hand

    async def answered(self) -> None:
        """Let all end."""
        self._over.set()
        await asyncio.gather(*self._running)
        self._over.clear()
        self._running.clear()


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


def test_none_waits_while_most_are_refused() -> None:
    async def run() -> None:
        hand = Hand()
        one = gate(2, 50, clock=hand)
        asking = Asking(one)
        # A burst has room, and a few too many change nothing.
        assert await asking.taken() == 50
        hand.now += 1
        await asking.answered()
        assert await asking.taken() == 50
        for _ in range(60):
            assert not await asking.once()
        hand.now += 1
        assert not await asking.once()
        await asking.answered()
        assert await asking.taken() == 2
        await asking.answered()
        # Nobody came for a while.
        hand.now += 2.1
        assert await asking.taken() == 50
        await asking.answered()
        one.close()

    asyncio.run(run())


def test_crowded_classes_share_the_cores() -> None:
    async def run() -> None:
        hand, crowd = Hand(), Crowd(3)
        first, second, calm = (Asking(gate(2, 4, crowd, hand)) for _ in range(3))
        for each in (first, second):
            assert await each.taken() == 4
            for _ in range(6):
                assert not await each.once()
        hand.now += 1
        for each in (first, second):
            assert not await each.once()
            await each.answered()
        assert (await first.taken(), await second.taken()) == (2, 1)
        # Room for the other once more; its own threads are busy.
        await second.answered()
        assert (await second.taken(), await first.taken()) == (1, 2)
        # One that refuses nobody goes on as ever.
        assert await calm.taken() == 4
        for each in (first, second, calm):
            await each.answered()
            each.gate.close()

    asyncio.run(run())


def test_a_crowded_class_gets_a_call_a_second_whatever_others_do() -> None:
    async def run() -> None:
        hand, crowd = Hand(), Crowd(1)
        greedy, shy = (Asking(gate(2, 4, crowd, hand)) for _ in range(2))
        for each in (greedy, shy):
            assert await each.taken() == 4
            for _ in range(6):
                assert not await each.once()
        hand.now += 1
        for each in (greedy, shy):
            assert not await each.once()
            await each.answered()
        over = Event()
        # Next parts of streams are never refused, and wait for their threads.
        parts = [asyncio.create_task(greedy.gate.run(partial(wait, over), again=True))]
        await settled(lambda: greedy.gate.in_hand == 1)
        for _ in range(3):
            assert await shy.taken() == 1
            await shy.answered()
            assert not await shy.once()
            hand.now += 1
        over.set()
        await asyncio.gather(*parts)
        for each in (greedy, shy):
            each.gate.close()

    asyncio.run(run())


def test_parts_that_wait_take_no_cores_from_others() -> None:
    async def run() -> None:
        hand, crowd, over = Hand(), Crowd(3), Event()
        streams, others = (Asking(gate(1, 4, crowd, hand)) for _ in range(2))
        for each in (streams, others):
            assert await each.taken() == 4
            for _ in range(6):
                assert not await each.once()
        hand.now += 1
        for each in (streams, others):
            assert not await each.once()
            await each.answered()
        parts = [
            asyncio.create_task(streams.gate.run(partial(wait, over), again=True)) for _ in range(4)
        ]
        await settled(lambda: streams.gate.in_hand == 4)
        for _ in range(3):
            assert await others.taken() == 1
            await others.answered()
        over.set()
        await asyncio.gather(*parts)
        for each in (streams, others):
            each.gate.close()

    asyncio.run(run())


def test_a_stream_keeps_its_thread_for_a_moment_where_its_class_is_crowded() -> None:
    async def run() -> None:
        hand = Hand()
        asking = Asking(gate(1, 4, clock=hand))
        assert await asking.taken() == 4
        for _ in range(6):
            assert not await asking.once()
        hand.now += 1
        assert not await asking.once()
        await asking.answered()
        with asking.gate.stream() as stream:
            assert await stream.run(lambda: 1) == 1
            assert not await asking.once()
            # Its next part is let in all the same.
            assert await stream.run(lambda: 2) == 2
            # Its caller reads on and on.
            hand.now += 0.1
            assert await asking.once()
            await asking.answered()
            assert await stream.run(lambda: 3) == 3
        assert await asking.once()
        await asking.answered()
        asking.gate.close()

    asyncio.run(run())


def test_a_call_that_was_let_in_keeps_its_place_until_it_comes() -> None:
    async def run() -> None:
        hand = Hand()
        asking = Asking(gate(1, 4, clock=hand))
        calls = [Call(str(number), "GetBoxScores") for number in range(3)]
        # Four wait: a burst, of which none keeps a place beforehand.
        asking.gate.expect(calls[0])
        assert await asking.taken() == 4
        for _ in range(6):
            assert not await asking.once()
        hand.now += 1
        assert not await asking.once()
        await asking.answered()
        assert not asking.gate.is_full()
        asking.gate.expect(calls[1])
        assert asking.gate.is_full()
        # The place is its own, and nobody else's.
        assert not await asking.once()
        current.set(calls[1])
        assert await asking.once()
        await asking.answered()
        assert not asking.gate.is_full()
        asking.gate.expect(calls[2])
        hand.now += 0.02
        # It never came.
        assert not asking.gate.is_full()
        asking.gate.close()

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
