"""Of a class of which most calls are refused, none waits, and its threads are shared."""

from __future__ import annotations

import asyncio
from functools import partial
from threading import Event

from server.gates import Asking, Hand, crowd, gate, settled, wait

from vitscope.server.admission import Crowd
from vitscope.server.calls import Call, current


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
        hand, cores = Hand(), Crowd(3)
        first, second, calm = (Asking(gate(2, 4, cores, hand)) for _ in range(3))
        await crowd(hand, first, second)
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
        hand, cores = Hand(), Crowd(1)
        greedy, shy = (Asking(gate(2, 4, cores, hand)) for _ in range(2))
        await crowd(hand, greedy, shy)
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
        hand, cores, over = Hand(), Crowd(3), Event()
        streams, others = (Asking(gate(1, 4, cores, hand)) for _ in range(2))
        await crowd(hand, streams, others)
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
        await crowd(hand, asking)
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
        await crowd(hand, asking)
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
