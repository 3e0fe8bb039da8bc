"""Stubs that talk to server processes: over the synthetic index, one with boxes, a live model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import grpc
import pytest
from server.questions import ROWS, boxes_of
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.v1.service_pb2_grpc import ActivationServiceStub

if TYPE_CHECKING:
    from lives import LiveIndex


@pytest.fixture(scope="session")
def channel(synthetic_server: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(synthetic_server) as opened:
        yield opened


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> ActivationServiceStub:
    return ActivationServiceStub(channel)


@pytest.fixture(scope="session")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return build(
        tmp_path_factory.mktemp("questions") / "zoo", complete=True, boxes=boxes_of, rows=ROWS
    )


@pytest.fixture(scope="session")
def ask(truth: Synthetic, serve: Callable[..., ServerProcess]) -> ActivationServiceStub:
    channel = grpc.insecure_channel(serve(truth.path).address)
    return ActivationServiceStub(channel)


@pytest.fixture(scope="session")
def live_stub(live_server: str) -> Iterator[ActivationServiceStub]:
    with grpc.insecure_channel(live_server) as channel:
        yield ActivationServiceStub(channel)


@pytest.fixture(scope="session")
def blind_stub(live: LiveIndex, serve: Callable[..., ServerProcess]) -> ActivationServiceStub:
    """Of a server with the model but without the pictures."""
    server = serve(live.path, options=live.options[:3])
    return ActivationServiceStub(grpc.insecure_channel(server.address))
