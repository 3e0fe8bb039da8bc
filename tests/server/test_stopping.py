"""A server that is told to end under load fails no call that was on its way.

`VITSCOPE_STOPS` says how often.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from started import ServerProcess
from synthetic import Synthetic

from vitscope.server.app import begin_all
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]

STOPS = int(os.environ.get("VITSCOPE_STOPS", "3"))
LAYER = "blocks.0.mlp"
PATIENCE = 60.0


class Asker(threading.Thread):
    """Asks until its server is gone; notes the answers, and the failures by when they began."""

    def __init__(self, address: str, truth: Synthetic, channel: int) -> None:
        super().__init__()
        self._address = address
        self._ranking = truth.ranking(LAYER, "mean", channel)[:30]
        self._channel = channel
        self.answered = 0
        self.failed: list[tuple[float, str]] = []

    def run(self) -> None:
        # A connection of its own, which any of the workers may have.
        options = [("grpc.use_local_subchannel_pool", 1)]
        request = pb.TopImagesRequest(layer=LAYER, channel=self._channel, k=30, include_maps=True)
        with grpc.insecure_channel(self._address, options=options) as channel:
            stub = ActivationServiceStub(channel)
            while not self.failed:
                begun = time.monotonic()
                try:
                    reply = stub.TopImages(request, timeout=PATIENCE)
                except grpc.RpcError as error:
                    self.failed.append((begun, str(error)))
                else:
                    if [(each.row, each.score) for each in reply.images] != self._ranking:
                        self.failed.append((begun, str(reply)))
                    self.answered += 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_call_fails_that_began_before_the_signal(
    synthetic: Synthetic, serve: Serve, workers: str
) -> None:
    for _ in range(STOPS):
        server = serve(synthetic.path, options=("--workers", workers))
        askers = [Asker(server.address, synthetic, number) for number in range(6)]
        for asker in askers:
            asker.start()
        limit = time.monotonic() + PATIENCE
        while not all(asker.answered > 5 for asker in askers):
            assert time.monotonic() < limit
            time.sleep(0.01)
        told = time.monotonic()
        assert server.terminate() == 0
        for asker in askers:
            asker.join()
        early = [failure for asker in askers for failure in asker.failed if failure[0] < told]
        assert early == []
        assert "Traceback" not in server.errors.read_text()


def test_what_came_last_has_begun_before_it_is_cancelled() -> None:
    """Or gRPC prints a trace; a call comes at just that moment in one stop of some hundreds."""
    begun = []

    async def call() -> None:
        begun.append(True)
        await asyncio.Event().wait()

    async def run() -> None:
        waiting = asyncio.create_task(call())
        await begin_all()
        assert (begun, waiting.done()) == ([True], False)

    asyncio.run(run())


def test_a_renewal_that_is_under_way_holds_up_no_end(synthetic_copy: Path, serve: Serve) -> None:
    server = serve(synthetic_copy, options=("--follow", "0.05"))
    [now] = (synthetic_copy / "generations").iterdir()
    new = now.with_name("000009-0123456789abcdef")
    new.mkdir()
    # It is opened, and read without end.
    manifest = new / "manifest.json"
    os.mkfifo(manifest)
    pointer = synthetic_copy / "CURRENT.new"
    pointer.write_text(f"{new.name}\n")
    pointer.replace(synthetic_copy / "CURRENT")
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            # Only once somebody reads it.
            writing = os.open(manifest, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:
            assert time.monotonic() < limit
            time.sleep(0.01)
    try:
        assert server.terminate() == 0
    finally:
        os.close(writing)
    assert "Traceback" not in server.errors.read_text()
