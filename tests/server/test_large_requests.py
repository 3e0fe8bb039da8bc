"""Requests beyond what the server receives: refused, and without the memory they ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from server.refusals import refused
from started import ServerProcess
from synthetic import Synthetic

from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]
LIMIT = 4 << 20
"""What gRPC receives at most."""
LARGE = 256 << 20
SLACK = 4 * LIMIT
"""A message that is received exists a few times: as frames, as slices, as bytes."""


def peak(server: ServerProcess) -> int:
    """The most bytes that the server has held since `forget`."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def forget(server: ServerProcess) -> None:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's to tell")
@pytest.mark.parametrize("compression", list(grpc.Compression))
@pytest.mark.parametrize("method", ["GetIndex", "GetImages"])
def test_large_requests(
    synthetic: Synthetic, serve: Serve, compression: grpc.Compression, method: str
) -> None:
    server = serve(synthetic.path)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        assert stub.GetIndex(pb.GetIndexRequest(), timeout=60).index.name == "zoo"
        forget(server)
        before = peak(server)
        call: Any = channel.unary_unary(f"/vitscope.v1.ActivationService/{method}")
        code, details = refused(lambda: call(bytes(LARGE), timeout=60, compression=compression))
        assert code in (StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNIMPLEMENTED)
        assert "Traceback" not in details
        assert peak(server) - before < SLACK
        assert stub.GetIndex(pb.GetIndexRequest(), timeout=60).index.name == "zoo"
