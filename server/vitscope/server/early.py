"""Refuses calls that are one too many before anything of their requests is received."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from vitscope.server.admission import Gates
from vitscope.server.calls import current
from vitscope.server.intake import Refusal
from vitscope.server.questions import QUESTIONS
from vitscope.v1 import service_pb2

_SERVICE = service_pb2.DESCRIPTOR.services_by_name["ActivationService"].full_name


class EarlyRefusals(aio.ServerInterceptor):
    """Of calls that would be refused whatever they ask.

    Receiving a request costs more than refusing it. As an interceptor, the last, it keeps a place
    for calls that are let in, or others would be let in meanwhile to be refused at the gate.
    """

    def __init__(self, gates: Gates, *, live: bool) -> None:
        """`live`: whether there are live models."""
        self._gates = gates
        names = QUESTIONS.items()
        self._costs = {f"/{_SERVICE}/{name}": each.costs(live=live) for name, each in names}

    def refusal_of(self, method: str) -> Refusal | None:
        """What refuses a call of a method; None where it may be taken."""
        costs = self._costs.get(method)
        return self._gates.refusal(costs) if costs else None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Give the method's handler."""
        handler = await continuation(handler_call_details)
        costs, call = self._costs.get(handler_call_details.method, ()), current.get()
        # Of several it is not known yet which it has.
        if len(costs) == 1 and call is not None:
            self._gates[costs[0]].expect(call)
        return handler
