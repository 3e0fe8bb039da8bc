"""What Prometheus is told agrees with what was asked, of one process and of several."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections.abc import Callable

import grpc
import pytest
from synthetic import ServerProcess, Synthetic, run_vitscope

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
    limit = time.monotonic() + PATIENCE
    while scraped(address).get('vitscope_calls_in_hand{cost="light"}') != 0.0:
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert server.terminate() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_address_that_cannot_be(synthetic: Synthetic, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        for address, word in ((taken, f"Cannot listen on {taken}"), ("x", "--metrics 'x' is not")):
            line = ("--listen", "127.0.0.1:0", "--metrics", address, "--workers", workers)
            done = run_vitscope("serve", synthetic.path, *line)
            assert (done.returncode, done.stdout) == (6, "")
            assert word in done.stderr
            assert done.stderr.count("\n") == 1
