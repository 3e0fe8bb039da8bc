"""A span of each call, sent to a collector over OTLP as OpenTelemetry's variables say.

Names are those of the semantic conventions for gRPC servers
(https://opentelemetry.io/docs/specs/semconv/rpc/grpc). Nothing of OpenTelemetry is loaded before
it is asked for. Every process makes its own exporter, whose threads would not survive a fork.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from importlib.metadata import version
from importlib.util import find_spec
from threading import Thread
from typing import Any

from vitscope.server.calls import OTHER, Call
from vitscope.server.errors import StartError
from vitscope.v1 import service_pb2

_log = logging.getLogger("vitscope.server")

_SERVICE = service_pb2.DESCRIPTOR.services_by_name["ActivationService"].full_name
_LONGEST_CLOSE = 3.0
"""Seconds for the last spans, where the collector does not answer."""
_FAILURES = {
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
}
"""Statuses that are a server's own failure; the others are the caller's."""


def wants_traces(asked: bool | None) -> bool:
    """Whether spans are to be sent: where asked for, or where variables name a collector.

    Raises `StartError` where it was asked for and cannot be; variables alone, which may be meant
    for others, are then followed by a warning.
    """
    if asked is False or not (asked or _variable("ENDPOINT")[1]):
        return False
    why = _why_not()
    if why and asked:
        raise StartError(f"--otel {why}")
    if why:
        _log.warning("No spans are sent: %s %s", _variable("ENDPOINT")[0], why)
    return not why


def _variable(name: str) -> tuple[str, str]:
    """The variable that holds for spans, and its value; empty where none is set."""
    usual = f"OTEL_EXPORTER_OTLP_{name}"
    for variable in (f"OTEL_EXPORTER_OTLP_TRACES_{name}", usual):
        if value := os.environ.get(variable):
            return variable, value
    return usual, ""


def _why_not() -> str:
    """The rest of a sentence; empty where nothing is in the way."""
    variable, protocol = _variable("PROTOCOL")
    if protocol not in ("", "grpc"):
        return (
            f"sends OTLP over gRPC, and {variable} is {protocol!r}; set it to grpc, with the "
            "collector's port for that."
        )
    for name in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc"):
        try:
            found = find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return (
                f"needs {name}, which is not installed; install it with: "
                "pip install 'vitscope[server,otel]'."
            )
    return ""


class Traces:
    """Of this process."""

    def __init__(self) -> None:
        """Raises `StartError` where a variable of OpenTelemetry is not as it has to be."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        release = version("vitscope")
        resource = Resource.create({"service.version": release, "process.pid": os.getpid()})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "vitscope"}))
        # At the exit of a process an exporter would wait for its collector.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        try:
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        except Exception as error:
            # Each of its parts reads variables, and raises what it likes.
            raise StartError(
                f"OpenTelemetry does not take one of its OTEL_ variables ({error}); correct it, "
                "or give --no-otel."
            ) from None
        self._tracer = self._provider.get_tracer("vitscope.server", release)
        self.address = ""
        """HOST:PORT of the server."""

    def ended(self, call: Call) -> None:
        """Make the call's span, below the one that its caller sent along."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, StatusCode, format_trace_id

        end = time.time_ns()
        span = self._tracer.start_span(
            "grpc" if call.method == OTHER else f"{_SERVICE}/{call.method}",
            context=extract(dict(call.metadata)),
            kind=SpanKind.SERVER,
            attributes=self._attributes(call),
            start_time=end - int(call.seconds * 1e9),
        )
        if call.code in _FAILURES:
            span.set_status(StatusCode.ERROR, call.reason)
        span.end(end)
        found = span.get_span_context()
        if found.is_valid:
            call.trace = format_trace_id(found.trace_id)

    def _attributes(self, call: Call) -> dict[str, Any]:
        host, _, port = self.address.rpartition(":")
        attributes: dict[str, Any] = {
            "rpc.system.name": "grpc",
            "rpc.method": "_OTHER" if call.method == OTHER else f"{_SERVICE}/{call.method}",
            "rpc.response.status_code": call.code,
            "server.address": host.strip("[]"),
            "server.port": int(port),
            "vitscope.request_id": call.id,
            "vitscope.queue_ms": call.waited * 1000,
            "vitscope.work_ms": call.worked * 1000,
            "vitscope.reply_bytes": call.sent,
        }
        if call.code in _FAILURES:
            attributes["error.type"] = call.code
        named = {
            "client.address": call.peer,
            "vitscope.index": call.index,
            "vitscope.cost": call.cost,
            "vitscope.token": call.token,
        }
        return attributes | {key: value for key, value in named.items() if value}

    async def close(self) -> None:
        """Send what is left, in a bounded time."""
        # Not by the loop's executor, which would be waited for at the end.
        closing = Thread(target=self._provider.shutdown, name="vitscope-traces", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _LONGEST_CLOSE)
