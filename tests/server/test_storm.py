"""Calls that are given up by the hundred leave nothing behind: no work, thread, file or memory.

`VITSCOPE_STORM` says how many.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from lives import KEPT, OTHER, LiveIndex
from processes import Usage, usage_of
from started import ServerProcess
from synthetic import build

from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells in /proc")

Serve = Callable[..., ServerProcess]

CALLS = int(os.environ.get("VITSCOPE_STORM", "600"))
WAVE = 300
"""Calls that are made at once, on connections that end with them."""
CONNECTIONS = 6
SETTLED = 5.0
"""Seconds after the first storm, when all is as it will be; and after the last one, on a machine
that does nothing else."""
SLACK = 16 << 20
"""Bytes that an allocator may keep of what a storm took."""
PATIENCE = 60.0
ENDED = {
    StatusCode.OK,
    StatusCode.CANCELLED,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.RESOURCE_EXHAUSTED,
}
STREAMS = ("GetPatchMaps", "GetImages", "GetScores", "TopImagesOfChannels")
LAYER = "blocks.0.mlp"
PLACE = pb.PatchPlace(y=1, x=1)


Asked = Sequence[tuple[str, Any]]


def kept_questions() -> Asked:
    """Light ones and scans, streams and single answers, of an index."""
    of: dict[str, Any] = {"layer": LAYER}
    return [
        ("GetIndex", pb.GetIndexRequest()),
        ("TopImages", pb.TopImagesRequest(**of, channel=2, k=50)),
        ("TopPatches", pb.TopPatchesRequest(**of, channel=2, k=50)),
        ("GetImages", pb.GetImagesRequest(rows=range(1, 400))),
        ("TopImagesOfChannels", pb.TopImagesOfChannelsRequest(**of, k=300)),
        ("GetBoxScores", pb.GetBoxScoresRequest(**of)),
        ("GetScores", pb.GetScoresRequest(**of)),
        ("SimilarPatches", pb.SimilarPatchesRequest(**of, row=2, patch=PLACE, exact=True)),
        ("CompareChannels", pb.CompareChannelsRequest(**of, other="zoo")),
    ]


def live_questions(live: LiveIndex) -> Asked:
    """Those that may take forwards, and a light one."""
    rows, picture = live.good_rows, live.files[-1].read_bytes()
    grids = [pb.PatchMapGrid(layer=OTHER, rows=rows, channels=range(8))]
    return [
        ("TopImages", pb.TopImagesRequest(layer=KEPT, channel=2)),
        ("GetPatchMaps", pb.GetPatchMapsRequest(grids=grids)),
        ("AnalyzeImage", pb.AnalyzeImageRequest(picture=picture)),
    ]


class Storm:
    """Makes calls and gives them up: by a deadline, by a cancellation, with the connection."""

    def __init__(self, address: str, asked: Asked) -> None:
        self._address = address
        self._asked = asked
        self._chance = random.Random(7)
        self.codes: Counter[StatusCode] = Counter()

    async def rage(self, calls: int) -> None:
        """Wave after wave until so many calls were made."""
        for start in range(0, calls, WAVE):
            await self._wave(min(WAVE, calls - start))

    async def _wave(self, calls: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(self._address, options) for _ in range(CONNECTIONS)]
        tasks = [
            asyncio.create_task(self._call(ActivationServiceStub(channels[number % CONNECTIONS])))
            for number in range(calls)
        ]
        # The last connections end under their calls.
        lasting = [task for number, task in enumerate(tasks) if number % CONNECTIONS > 1]
        await asyncio.gather(*lasting)
        for channel in channels:
            await channel.close()
        await asyncio.gather(*tasks)

    async def _call(self, stub: Any) -> None:
        await asyncio.sleep(self._chance.uniform(0, 0.3))
        method, request = self._chance.choice(self._asked)
        deadline = self._chance.choice([None, 0.001, 0.01, 0.1, 1.0])
        patience = self._chance.choice([0.0, 0.001, 0.01, 0.1, 1.0])
        try:
            call = getattr(stub, method)(request, timeout=deadline or PATIENCE)
        except grpc.aio.UsageError:
            # Its connection has ended before.
            return
        if deadline is None:
            reading = asyncio.ensure_future(self._read(method, call))
            await asyncio.wait([reading], timeout=patience)
            call.cancel()
            await reading
        else:
            await self._read(method, call)
        self.codes[await call.code()] += 1

    async def _read(self, method: str, call: Any) -> None:
        try:
            if method in STREAMS:
                async for _ in call:
                    # A caller that reads slowly, or not to the end.
                    await asyncio.sleep(self._chance.choice([0, 0, 0.01]))
            else:
                await call
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass


def in_hand(metrics: str) -> float:
    """Calls of all classes that are in hand."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=PATIENCE) as reply:
        text = reply.read().decode()
    found = re.findall(r"^vitscope_calls_in_hand\{.*\} (\S+)$", text, re.MULTILINE)
    assert len(found) == 3
    return sum(map(float, found))


def settle(pid: int, metrics: str, baseline: Usage) -> float:
    """Seconds until nothing is in hand and the process holds no more than before."""
    began = time.monotonic()
    while True:
        now, busy = usage_of(pid), in_hand(metrics)
        taken = time.monotonic() - began
        if (
            busy == 0
            and now.threads <= baseline.threads
            and now.files <= baseline.files
            and now.resident <= baseline.resident + SLACK
        ):
            return taken
        assert taken < PATIENCE, f"{busy:.0f} in hand, {now} after {baseline}"
        time.sleep(0.05)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("of", ["an index", "a live model"])
def test_a_storm_leaves_nothing_behind(
    of: str, live: LiveIndex, serve: Serve, tmp_path: Path
) -> None:
    metrics = free_port()
    options: tuple[str, ...] = ()
    if of == "an index":
        path = build(tmp_path / "zoo", complete=True, rows=400).path
        asked = kept_questions()
    else:
        path, asked, options = live.path, live_questions(live), live.options
    server = serve(path, options=(*options, "--metrics", metrics))
    pid = server.process.pid
    truth = answers(server.address, asked)
    # What is held from the first storm on, such as all threads, is held for good.
    asyncio.run(Storm(server.address, asked).rage(WAVE))
    time.sleep(SETTLED)
    baseline = usage_of(pid)
    storm = Storm(server.address, asked)
    asyncio.run(storm.rage(CALLS))
    seconds = settle(pid, metrics, baseline)
    print(f"{dict(storm.codes)}; {baseline} came back after {seconds:.1f} s")
    assert set(storm.codes) <= ENDED
    assert storm.codes[StatusCode.CANCELLED] > 0
    assert storm.codes[StatusCode.DEADLINE_EXCEEDED] > 0
    assert answers(server.address, asked) == truth
    # gRPC's own log has tracebacks of replies that nobody took.
    assert "A call failed in the server" not in server.errors.read_text()


def answers(address: str, asked: Asked) -> list[list[bytes]]:
    """All replies to all questions."""
    found = []
    with grpc.insecure_channel(address) as channel:
        stub = ActivationServiceStub(channel)
        for method, request in asked:
            reply = getattr(stub, method)(request, timeout=PATIENCE)
            replies = list(reply) if method in STREAMS else [reply]
            found.append([each.SerializeToString() for each in replies])
    return found
