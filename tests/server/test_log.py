"""What a server says of itself: lines for people or for machines, and never a token."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from processes import children_of
from server.broken import PROGRAM, SECRET
from server.refusals import refused
from started import ServerProcess
from synthetic import Synthetic

from vitscope.server.calls import host_of
from vitscope.server.tokens import Rate, line_of, new_token
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]
LAYER = "blocks.0.mlp"
PATIENCE = 60.0
MEASURED = {"time", "pid", "ms", "queue_ms", "work_ms"}


def lines(server: ServerProcess) -> list[dict[str, Any]]:
    """All lines of a log of JSON."""
    return [json.loads(line) for line in server.errors.read_text().splitlines()]


def given(number: int, token: str = "") -> Any:
    """Metadata with an id, and with a token."""
    bearer = (("authorization", f"Bearer {token}"),) if token else ()
    return (("x-request-id", f"call-{number}"), *bearer)


def test_every_call_is_a_line(synthetic: Synthetic, serve: Serve, tmp_path: Path) -> None:
    tokens, ada, slow = tmp_path / "tokens", new_token(), new_token()
    tokens.write_text(f"{line_of('ada', ada)}\n{line_of('slow', slow, Rate.of('1/h'))}\n")
    options = ("--log-format", "json", "--log-calls", "all", "--tokens", str(tokens))
    server = serve(synthetic.path, options=options)
    began = datetime.now(UTC)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        top = stub.TopImages(pb.TopImagesRequest(layer=LAYER), metadata=given(0, ada))
        asked = pb.GetImagesRequest(index=synthetic.name, rows=range(1, 60))
        images = list(stub.GetImages(asked, metadata=given(1, slow)))
        index = stub.GetIndex(pb.GetIndexRequest(), metadata=given(2, ada))
        indexes = stub.ListIndexes(pb.ListIndexesRequest(), metadata=given(3, ada))
        wrong = pb.TopImagesRequest(index=synthetic.name, layer="no\nlayer")
        reasons = [
            refused(lambda: stub.TopImages(wrong, metadata=given(4, ada)))[1],
            refused(lambda: stub.TopImages(wrong, metadata=given(5, slow)))[1],
            refused(lambda: stub.TopImages(wrong, metadata=given(6, new_token())))[1],
        ]
        made_up: Any = channel.unary_unary("/made/up")
        reasons.append(refused(lambda: made_up(b"", metadata=given(7, ada)))[1])
        broken: Any = channel.unary_stream("/vitscope.v1.ActivationService/GetScores")
        reasons.append(refused(lambda: list(broken(b"\xff", metadata=given(8, ada))))[1])
    answered, mine = {"peer": "127.0.0.1", "code": "OK"}, {"index": synthetic.name}
    light, none = {"cost": "light"}, {"peer": "127.0.0.1", "reply_bytes": 0}
    failed = [{**none, "reason": reason} for reason in reasons]
    expected: list[dict[str, Any]] = [
        {"method": "TopImages", "token": "ada", "reply_bytes": top.ByteSize(), **light, **mine},
        {
            "method": "GetImages",
            "token": "slow",
            "reply_bytes": sum(each.ByteSize() for each in images),
            **light,
            **mine,
        },
        {"method": "GetIndex", "token": "ada", "reply_bytes": index.ByteSize(), **mine},
        {"method": "ListIndexes", "token": "ada", "reply_bytes": indexes.ByteSize()},
        {"method": "TopImages", "token": "ada", "code": "NOT_FOUND", **light, **mine, **failed[0]},
        {"method": "TopImages", "token": "slow", "code": "RESOURCE_EXHAUSTED", **failed[1]},
        {"method": "TopImages", "code": "UNAUTHENTICATED", **failed[2]},
        {"method": "other", "token": "ada", "code": "UNIMPLEMENTED", **failed[3]},
        {"method": "GetScores", "token": "ada", "code": "INVALID_ARGUMENT", **failed[4]},
    ]
    always = {"level": "info", "logger": "vitscope.server.calls", "message": "A call ended."}
    found = lines(server)
    for number, (line, fields) in enumerate(zip(found, expected, strict=True)):
        said = {key: value for key, value in line.items() if key not in MEASURED}
        assert said == {**always, **answered, **fields, "request_id": f"call-{number}"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert datetime.fromisoformat(line["time"]).timestamp() >= began.timestamp() - 0.001
        assert line["pid"] == server.process.pid
        # Each is rounded.
        assert line["queue_ms"] + line["work_ms"] <= line["ms"] + 0.002
        assert (line["work_ms"] > 0) == ("cost" in fields)
    assert server.terminate() == 0
    text = server.errors.read_text()
    for token in (ada, slow):
        assert token not in text
        assert sha256(token.encode()).hexdigest() not in text


def test_failed_calls_alone_for_people(synthetic: Synthetic, serve: Serve) -> None:
    server = serve(synthetic.path, options=("--log-calls", "failed"))
    odd = pb.TopImagesRequest(layer="\x1b[31m code=OK\n")
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        stub.TopImages(pb.TopImagesRequest(layer=LAYER))
        assert refused(lambda: stub.TopImages(odd, metadata=(("x-request-id", "a='b'"),)))
    assert server.terminate() == 0
    [line] = server.errors.read_text().splitlines()
    assert line.isprintable()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO A call ended\. ", line)
    assert """ request_id="a='b'" method=TopImages code=NOT_FOUND index=zoo cost=light""" in line
    assert " peer=127.0.0.1 reason=" in line
    assert line.count(" code=") == 2


@pytest.mark.parametrize(
    "options", [(), ("--log-calls", "none"), ("--log-calls", "all", "--log-level", "warning")]
)
def test_no_call_is_a_line_unless_asked_for(
    synthetic: Synthetic, serve: Serve, options: tuple[str, ...]
) -> None:
    server = serve(synthetic.path, options=options)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        stub.TopImages(pb.TopImagesRequest(layer=LAYER))
        assert refused(lambda: stub.TopImages(pb.TopImagesRequest(layer="none")))
    assert server.terminate() == 0
    assert server.errors.read_text() == ""


def test_lines_name_their_worker(synthetic: Synthetic, serve: Serve) -> None:
    options = ("--workers", "2", "--log-format", "json", "--log-calls", "all")
    server = serve(synthetic.path, options=options)
    first = children_of(server.process.pid)
    for _ in range(32):
        alone = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.address, options=alone) as channel:
            ActivationServiceStub(channel).GetIndex(pb.GetIndexRequest())
    os.kill(first[0], signal.SIGKILL)
    limit = time.monotonic() + PATIENCE
    while len(lines(server)) < 33:
        assert time.monotonic() < limit
        time.sleep(0.02)
    *calls, death = lines(server)
    assert {(line["worker"], line["pid"]) for line in calls} == set(enumerate(first))
    assert "worker" not in death
    assert (death["level"], death["pid"]) == ("error", server.process.pid)
    assert "ended by itself (killed by SIGKILL)" in death["message"]
    assert server.terminate() == 0


@pytest.mark.parametrize("log", ["json", "text"])
def test_a_bug_is_told_in_the_log_and_to_nobody_else(
    synthetic: Synthetic, serve: Serve, log: str
) -> None:
    server = serve(synthetic.path, options=("--log-format", log), program=PROGRAM)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        calls: list[Callable[[], object]] = [
            lambda: stub.TopImages(pb.TopImagesRequest(layer=LAYER), metadata=given(0)),
            lambda: list(stub.GetImages(pb.GetImagesRequest(rows=[1]), metadata=given(1))),
        ]
        for number, call in enumerate(calls):
            assert refused(call) == (
                grpc.StatusCode.INTERNAL,
                f"The server failed to answer; its log says why, at request_id call-{number}.",
            )
        assert stub.GetIndex(pb.GetIndexRequest()).index.name == synthetic.name
    assert server.terminate() == 0
    if log == "text":
        text = server.errors.read_text()
        assert text.count(f"\nRuntimeError: {SECRET}\n") == 2
        for number in (0, 1):
            assert f"ERROR A call failed in the server. request_id=call-{number}\nTr" in text
        return
    # Also what the thread said that was at it.
    ids = [(line["level"], line["request_id"]) for line in lines(server)]
    assert ids == [(level, f"call-{n}") for n in (0, 1) for level in ("warning", "error")]
    for line in lines(server)[1::2]:
        assert line["exception"].startswith("Traceback (most recent call last):\n")
        assert line["exception"].endswith(f"\nRuntimeError: {SECRET}")


@pytest.mark.parametrize("method", ["GetPatchMaps", "TopImagesOfChannels"])
def test_a_caller_who_goes_away_is_a_line(synthetic: Synthetic, serve: Serve, method: str) -> None:
    """While its stream waits for the next part, and while this caller does not read."""
    options = ("--log-format", "json", "--log-calls", "failed")
    server = serve(synthetic.path, options=options, program=PROGRAM)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        call = getattr(stub, method)(getattr(pb, f"{method}Request")(), metadata=given(0))
        assert next(call).generation
        call.cancel()
        limit = time.monotonic() + PATIENCE
        while not lines(server):
            assert time.monotonic() < limit
            time.sleep(0.02)
        assert stub.GetIndex(pb.GetIndexRequest()).index.name == synthetic.name
    assert server.terminate() == 0
    [line] = lines(server)
    named = {key: line.get(key) for key in ("method", "code", "peer", "request_id", "reason")}
    assert named == {
        "method": method,
        "code": "CANCELLED",
        "peer": "127.0.0.1",
        "request_id": "call-0",
        "reason": None,
    }
    assert line["reply_bytes"] > 0


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.7:5123", "10.0.0.7"),
        ("ipv6:%5B::1%5D:5123", "::1"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::1%eth0"),
        ("unix:/run/vitscope", "unix"),
        ("unix:", "unix"),
    ],
)
def test_a_peer_has_a_host_and_no_port(peer: str, host: str) -> None:
    assert host_of(peer) == host
