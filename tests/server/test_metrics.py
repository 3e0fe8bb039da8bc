"""What Prometheus is told agrees with what was asked, of one process and of several."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import children_of
from server.refusals import refused
from started import ServerProcess, run_vitscope
from synthetic import Synthetic, build

from vitscope.server.tokens import Rate, line_of, new_token
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]
PATIENCE = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def scraped(address: str) -> dict[str, float]:
    """Every sample by its name and labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as reply:
        lines = reply.read().decode().splitlines()
    found = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {re.sub(r',?pid="[0-9]+"', "", name): float(value) for name, _, value in found}


def wait_for(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.05)


def is_above(address: str, name: str) -> bool:
    return scraped(address).get(name, 0.0) > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_calls_are_counted_by_method_and_status(
    synthetic: Synthetic, serve: Serve, workers: int
) -> None:
    address = f"127.0.0.1:{free_port()}"
    server = serve(synthetic.path, options=("--metrics", address, "--workers", str(workers)))
    options = [("grpc.use_local_subchannel_pool", 1)]
    for _ in range(8):
        # A connection of its own, which any of the workers may get.
        with grpc.insecure_channel(server.address, options=options) as channel:
            stub = ActivationServiceStub(channel)
            for number in range(5):
                stub.TopImages(pb.TopImagesRequest(layer="blocks.0.mlp", channel=number))
            list(stub.GetImages(pb.GetImagesRequest(rows=[1, 2])))
            with pytest.raises(grpc.RpcError):
                stub.TopImages(pb.TopImagesRequest(layer="blocks.9.mlp"))
    expected = {
        'vitscope_calls_total{code="OK",method="TopImages"}': 40.0,
        'vitscope_calls_total{code="NOT_FOUND",method="TopImages"}': 8.0,
        'vitscope_calls_total{code="OK",method="GetImages"}': 8.0,
        'vitscope_call_seconds_count{method="TopImages"}': 48.0,
        'vitscope_call_seconds_bucket{le="+Inf",method="GetImages"}': 8.0,
    }
    found = scraped(address)
    assert {name: found.get(name) for name in expected} == expected
    wait_for(lambda: scraped(address).get('vitscope_calls_in_hand{cost="light"}') == 0.0)
    assert server.terminate() == 0


class Storm(threading.Thread):
    """Asks for more than a server takes at a time, until it is told to end."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self._over = threading.Event()

    def run(self) -> None:
        asyncio.run(self._ask())

    async def _ask(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with AsyncExitStack() as channels:
            opened = [
                await channels.enter_async_context(
                    grpc.aio.insecure_channel(self._address, options=options)
                )
                for _ in range(8)
            ]
            while not self._over.is_set():
                calls = [
                    ActivationServiceStub(channel).GetBoxScores(
                        pb.GetBoxScoresRequest(layer="blocks.0.mlp"), timeout=PATIENCE
                    )
                    for channel in opened
                    for _ in range(4)
                ]
                await asyncio.gather(*calls, return_exceptions=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


IN_HAND, REFUSED = (f'vitscope_calls_{what}{{cost="scan"}}' for what in ("in_hand", "refused"))


@pytest.mark.parametrize("workers", [1, 2])
def test_calls_in_hand_and_refused_are_told(tmp_path: Path, serve: Serve, workers: int) -> None:
    truth = build(tmp_path / "zoo", complete=True, rows=400)
    address = f"127.0.0.1:{free_port()}"
    options = ("--metrics", address, "--workers", str(workers), "--in-hand", "scan=1")
    server = serve(truth.path, options=options)
    with Storm(server.address):
        for name in (IN_HAND, REFUSED):
            wait_for(partial(is_above, address, name))
        assert scraped(address)[IN_HAND] <= workers
    wait_for(lambda: scraped(address)[IN_HAND] == 0)
    assert scraped(address)[REFUSED] > 0
    if workers > 1:
        # Those of workers that are gone count no more.
        for pid in children_of(server.process.pid):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: scraped(address).get(REFUSED) == 0)
    assert server.terminate() == 0


def test_calls_without_a_token_are_counted_and_health_is_not(
    synthetic: Synthetic, serve: Serve, tmp_path: Path
) -> None:
    tokens, token = tmp_path / "tokens", new_token()
    tokens.write_text(line_of("ada", token, Rate.of("2/h")) + "\n")
    address = f"127.0.0.1:{free_port()}"
    server = serve(synthetic.path, options=("--metrics", address, "--tokens", str(tokens)))
    asked, mine = pb.GetIndexRequest(), (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        for _ in range(3):
            assert refused(lambda: stub.GetIndex(asked))[0] is StatusCode.UNAUTHENTICATED
        for name in "abc":
            made_up: Any = channel.unary_unary(f"/{name}/{name}")
            assert refused(partial(made_up, b""))[0] is StatusCode.UNAUTHENTICATED
        for _ in range(2):
            stub.GetIndex(asked, metadata=mine)
        late = refused(lambda: stub.GetIndex(asked, metadata=mine))
        assert late[0] is StatusCode.RESOURCE_EXHAUSTED
        checks = health_pb2_grpc.HealthStub(channel)
        checks.Check(health_pb2.HealthCheckRequest())
        nothing = health_pb2.HealthCheckRequest(service="nothing")
        assert refused(lambda: checks.Check(nothing))[0] is StatusCode.NOT_FOUND
    counted = {
        name: value for name, value in scraped(address).items() if "vitscope_calls_total" in name
    }
    assert counted == {
        'vitscope_calls_total{code="UNAUTHENTICATED",method="GetIndex"}': 3.0,
        'vitscope_calls_total{code="UNAUTHENTICATED",method="other"}': 3.0,
        'vitscope_calls_total{code="OK",method="GetIndex"}': 2.0,
        'vitscope_calls_total{code="RESOURCE_EXHAUSTED",method="GetIndex"}': 1.0,
    }
    assert server.terminate() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_address_that_cannot_be(synthetic: Synthetic, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        for address, word in (
            (taken, f"Cannot listen on {taken}"),
            ("x", "--metrics 'x' is not"),
            (f"{'x' * 80}.invalid:0", "the host is no name"),
            ("0.0.0.0:0", "--metrics 0.0.0.0:0 is reached from other machines"),
            ("[::]:0", "--metrics [::]:0 is reached from other machines"),
        ):
            line = ("--listen", "127.0.0.1:0", "--metrics", address, "--workers", workers)
            done = run_vitscope("serve", synthetic.path, *line)
            assert (done.returncode, done.stdout) == (6, "")
            assert word in done.stderr
            assert done.stderr.count("\n") == 1
