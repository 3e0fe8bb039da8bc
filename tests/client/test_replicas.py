"""Several servers behind one client, of which some go away under load: no call fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event

import pytest
from started import ServerProcess
from synthetic import Synthetic

from vitscope.client import AsyncClient, Client, UnavailableError

Serve = Callable[..., ServerProcess]

LAYER = "blocks.0.mlp"
CALLERS = 8
CALLS = 150
"""By each caller."""
PATIENCE = 60.0


def rankings(truth: Synthetic) -> list[list[tuple[int, float]]]:
    return [truth.ranking(LAYER, "mean", channel)[:30] for channel in range(11)]


@pytest.mark.parametrize("killed", [1, 2])
def test_no_call_fails_where_replicas_are_killed(
    synthetic: Synthetic, serve: Serve, killed: int
) -> None:
    servers = [serve(synthetic.path) for _ in range(3)]
    right, begun = rankings(synthetic), Event()
    with Client([server.address for server in servers]) as client:

        def ask(caller: int) -> int:
            for number in range(CALLS):
                channel = (caller + number) % 11
                images = client.top_images(LAYER, channel, k=30, maps=True).images
                assert [(image.row, image.score) for image in images] == right[channel]
                if number > CALLS // 4:
                    begun.set()
            return CALLS

        with ThreadPoolExecutor(CALLERS) as pool:
            tasks = [pool.submit(ask, caller) for caller in range(CALLERS)]
            assert begun.wait(PATIENCE)
            for server in servers[:killed]:
                server.process.kill()
            assert [task.result() for task in tasks] == [CALLS] * CALLERS


def test_no_call_of_asyncio_fails_either(synthetic: Synthetic, serve: Serve) -> None:
    servers = [serve(synthetic.path) for _ in range(3)]
    right = rankings(synthetic)

    async def run() -> None:
        async with AsyncClient([server.address for server in servers]) as client:

            async def ask(caller: int) -> None:
                for number in range(CALLS):
                    channel = (caller + number) % 11
                    images = (await client.top_images(LAYER, channel, k=30)).images
                    assert [(image.row, image.score) for image in images] == right[channel]
                    if caller == 0 and number == CALLS // 4:
                        servers[0].process.kill()

            await asyncio.gather(*(ask(caller) for caller in range(CALLERS)))

    asyncio.run(run())


def test_a_replica_that_comes_back_is_asked_again(synthetic: Synthetic, serve: Serve) -> None:
    first, second = serve(synthetic.path), serve(synthetic.path)
    with Client([first.address, second.address]) as client:
        assert client.index().name == "zoo"
        first.process.kill()
        first.process.wait()
        assert client.index().name == "zoo"
        serve(synthetic.path, options=("--listen", first.address))
        second.process.kill()
        second.process.wait()
        limit, name = time.monotonic() + PATIENCE, ""
        # It is dialled again after a pause.
        while not name:
            assert time.monotonic() < limit
            with suppress(UnavailableError):
                name = client.index().name
