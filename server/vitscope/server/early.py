"""Refuses calls that are one too many before anything of their requests is received."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from vitscope.server.admission import Gates
from vitscope.server.questions import QUESTIONS
from vitscope.v1 import service_pb2

_SERVICE = service_pb2.DESCRIPTOR.services_by_name["ActivationService"].full_name


class EarlyRefusals(aio.ServerInterceptor):
    """Raises `OverloadedError` where a call would be refused whatever it asks.

    Receiving a request costs as much as refusing it.
    """

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self._costs = {f"/{_SERVICE}/{name}": each.costs for name, each in QUESTIONS.items()}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Give the method's handler."""
        if costs := self._costs.get(handler_call_details.method):
            self._gates.check(costs)
        return await continuation(handler_call_details)
