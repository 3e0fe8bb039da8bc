"""Spans over OTLP, as a collector gets them: a real one of gRPC, on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from server.broken import PROGRAM, SECRET
from server.refusals import refused
from started import ServerProcess, run_vitscope
from synthetic import Synthetic

from vitscope.server.tokens import line_of, new_token
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]
SERVICE = "vitscope.v1.ActivationService"
LAYER = "blocks.0.mlp"
ALONE = [("grpc.use_local_subchannel_pool", 1)]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes by name; of their kinds each has one value."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in attributes
    }


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent, each beside the attributes of its process."""

    def __init__(self) -> None:
        self.spans: list[tuple[Mapping[str, Any], trace_pb2.Span]] = []
        self._lock = Lock()
        self._server = grpc.server(ThreadPoolExecutor(2))
        add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(self, self._server)
        self.environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": (
                f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
            )
        }
        self._server.start()

    def Export(  # noqa: N802
        self, request: collector.ExportTraceServiceRequest, context: Any
    ) -> collector.ExportTraceServiceResponse:
        with self._lock:
            for resource in request.resource_spans:
                process = plain(resource.resource.attributes)
                spans = [span for scope in resource.scope_spans for span in scope.spans]
                self.spans += [(process, span) for span in spans]
        return collector.ExportTraceServiceResponse()

    def close(self) -> None:
        """Take no more."""
        self._server.stop(None).wait()


@pytest.fixture
def otlp() -> Iterator[Collector]:
    started = Collector()
    yield started
    started.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_call_is_a_span_below_its_callers(
    synthetic: Synthetic, serve: Serve, otlp: Collector, workers: int
) -> None:
    options = ("--workers", str(workers), "--log-calls", "all", "--log-format", "json")
    server = serve(synthetic.path, options=options, environ=otlp.environ)
    host, _, port = server.address.rpartition(":")
    before = time.time_ns()
    sizes = {}
    for number in range(32):
        metadata = (
            ("x-request-id", f"call-{number}"),
            ("traceparent", f"00-{TRACE}-{PARENT}-01"),
        )
        with grpc.insecure_channel(server.address, options=ALONE) as channel:
            stub = ActivationServiceStub(channel)
            reply = stub.TopImages(
                pb.TopImagesRequest(layer=LAYER, k=number + 1), metadata=metadata
            )
        sizes[f"call-{number}"] = reply.ByteSize()
    # What was not sent yet is sent at the end.
    assert server.terminate() == 0
    after = time.time_ns()
    assert len(otlp.spans) == 32
    for process, span in otlp.spans:
        assert process["service.name"] == "vitscope"
        assert (span.name, span.kind) == (f"{SERVICE}/TopImages", span.SPAN_KIND_SERVER)
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        assert before <= span.start_time_unix_nano < span.end_time_unix_nano <= after
        assert span.status.code == trace_pb2.Status.STATUS_CODE_UNSET
        said = plain(span.attributes)
        work, queue = said.pop("vitscope.work_ms"), said.pop("vitscope.queue_ms")
        took = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert 0 < work + queue <= took
        assert sizes.pop(said["vitscope.request_id"]) == said.pop("vitscope.reply_bytes")
        assert said.pop("vitscope.request_id").startswith("call-")
        assert said == {
            "rpc.system.name": "grpc",
            "rpc.method": f"{SERVICE}/TopImages",
            "rpc.response.status_code": "OK",
            "server.address": host,
            "server.port": int(port),
            "client.address": "127.0.0.1",
            "vitscope.index": synthetic.name,
            "vitscope.cost": "light",
        }
    lines = [json.loads(line) for line in server.errors.read_text().splitlines()]
    assert {line["trace_id"] for line in lines} == {TRACE}
    assert {process["process.pid"] for process, _ in otlp.spans} == {line["pid"] for line in lines}
    assert len({line["pid"] for line in lines}) == workers


def test_a_failure_of_the_server_is_one_of_its_span(
    synthetic: Synthetic, serve: Serve, otlp: Collector, tmp_path: Any
) -> None:
    tokens, token = tmp_path / "tokens", new_token()
    tokens.write_text(line_of("ada", token))
    environ = {**otlp.environ, "OTEL_SERVICE_NAME": "zoo-server"}
    options = ("--tokens", str(tokens), "--log-format", "json")
    server = serve(synthetic.path, options=options, program=PROGRAM, environ=environ)
    mine = (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        asked = pb.TopImagesRequest(layer=LAYER)
        assert refused(lambda: stub.TopImages(asked))
        assert refused(lambda: stub.GetIndex(pb.GetIndexRequest(index="x"), metadata=mine))
        made_up: Any = channel.unary_unary("/made/up")
        assert refused(lambda: made_up(b"", metadata=mine))
        _, told = refused(lambda: stub.TopImages(asked, metadata=mine))
        rows = pb.GetImagesRequest(rows=[1])
        assert refused(lambda: list(stub.GetImages(rows, metadata=mine)))
    assert server.terminate() == 0
    assert {process["service.name"] for process, _ in otlp.spans} == {"zoo-server"}
    ends = [
        (span.name, plain(span.attributes)["rpc.response.status_code"], span.status.code)
        for _, span in otlp.spans
    ]
    unset, error = trace_pb2.Status.STATUS_CODE_UNSET, trace_pb2.Status.STATUS_CODE_ERROR
    assert ends == [
        (f"{SERVICE}/TopImages", "UNAUTHENTICATED", unset),
        (f"{SERVICE}/GetIndex", "NOT_FOUND", unset),
        ("grpc", "UNIMPLEMENTED", error),
        (f"{SERVICE}/TopImages", "INTERNAL", error),
        (f"{SERVICE}/GetImages", "INTERNAL", error),
    ]
    failed = otlp.spans[3][1]
    assert failed.status.message == told
    said = plain(failed.attributes)
    assert (said["error.type"], said["vitscope.token"]) == ("INTERNAL", "ada")
    sent = str(otlp.spans)
    assert token not in sent
    assert SECRET not in sent
    # The line with the traceback leads to the trace, which has no parent here.
    lines = [json.loads(line) for line in server.errors.read_text().splitlines()]
    [line] = [each for each in lines if each.get("request_id") == said["vitscope.request_id"]][1:]
    assert line["trace_id"] == failed.trace_id.hex()
    assert failed.parent_span_id == b""


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_collector_that_is_not_there_holds_up_nothing(synthetic: Synthetic, serve: Serve) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{free_address()}"}
    server = serve(synthetic.path, options=("--otel",), environ=environ)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        for number in range(20):
            stub.TopImages(pb.TopImagesRequest(layer=LAYER, channel=number % 5))
    assert server.terminate() == 0
    assert "Traceback" not in server.errors.read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_variables_that_cannot_be_keep_a_server_from_starting(
    synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "ten")
    options = ("--listen", "127.0.0.1:0", "--otel", "--workers", workers)
    done = run_vitscope("serve", synthetic.path, *options)
    assert (done.returncode, done.stdout) == (6, "")
    assert "OpenTelemetry does not take one of its OTEL_ variables" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_otel_is_stronger_than_variables(
    synthetic: Synthetic, serve: Serve, otlp: Collector, workers: str
) -> None:
    options = ("--no-otel", "--workers", workers)
    server = serve(synthetic.path, options=options, environ=otlp.environ)
    with grpc.insecure_channel(server.address) as channel:
        ActivationServiceStub(channel).GetIndex(pb.GetIndexRequest())
    assert server.terminate() == 0
    assert otlp.spans == []


WITHOUT = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name="opentelemetry")

sys.meta_path.insert(0, Missing())
from vitscope.client.cli import main
sys.exit(main(sys.argv[1:]))
"""
MEND = "pip install 'vitscope[server,otel]'."


def test_without_the_extra(synthetic: Synthetic, serve: Serve) -> None:
    program = (sys.executable, "-c", WITHOUT)
    command = [*program, "serve", str(synthetic.path), "--listen", "127.0.0.1:0", "--otel"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (6, "")
    assert (
        done.stderr
        == (
            "vitscope: --otel needs opentelemetry, which is not installed; install it with: " + MEND
        )
        + "\n"
    )
    # Variables may be meant for others.
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    server = serve(synthetic.path, program=program, environ=environ)
    with grpc.insecure_channel(server.address) as channel:
        ActivationServiceStub(channel).GetIndex(pb.GetIndexRequest())
    assert server.terminate() == 0
    [line] = server.errors.read_text().splitlines()
    assert " WARNING No spans are sent: OTEL_EXPORTER_OTLP_ENDPOINT needs opentelemetry" in line
    assert line.endswith(MEND)


def test_another_protocol_is_refused(synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    done = run_vitscope("serve", synthetic.path, "--listen", "127.0.0.1:0", "--otel")
    assert (done.returncode, done.stdout) == (6, "")
    assert "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/protobuf'; set it to grpc" in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = "import sys, vitscope.server.app; print([m for m in sys.modules if 'telemetry' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
