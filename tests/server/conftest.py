"""A stub that talks to the server process over the synthetic index."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from vitscope.v1.service_pb2_grpc import ActivationServiceStub


@pytest.fixture(scope="session")
def channel(synthetic_server: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(synthetic_server) as opened:
        yield opened


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> ActivationServiceStub:
    return ActivationServiceStub(channel)
