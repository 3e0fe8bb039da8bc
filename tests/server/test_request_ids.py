"""Every answer has an id by which the log knows its call, the caller's own where that is sane."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from server.broken import PROGRAM
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.server.tokens import Rate, line_of, new_token
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]
LAYER = "blocks.0.mlp"
MINE = "Mine/0~1"
PATIENCE = 60.0


def ids_of(call: Any) -> list[str]:
    """Those that an answer brings."""
    metadata: Iterable[tuple[str, Any]] = call.trailing_metadata() or ()
    return [value for key, value in metadata if key == "x-request-id"]


def given(token: str = "", request_id: str = MINE) -> dict[str, Any]:
    """How to call with them."""
    bearer = (("authorization", f"Bearer {token}"),) if token else ()
    return {"metadata": (("x-request-id", request_id), *bearer), "timeout": PATIENCE}


def check(call: Any, code: StatusCode) -> None:
    """That a call, which may have replies to read, ends so and brings its id once."""
    if isinstance(call, Iterable):
        with suppress(grpc.RpcError):
            list(call)
    assert (call.code(), ids_of(call)) == (code, [MINE])


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ((), False),
        (("req-4711",), True),
        (("!~" * 64,), True),
        (("!~" * 64 + "x",), False),
        (("",), False),
        (("two words",), False),
        (("one", "two"), False),
        (("one", "one"), False),
    ],
)
def test_a_sane_id_is_kept_and_any_other_replaced(
    stub: ActivationServiceStub, ids: tuple[str, ...], kept: bool
) -> None:
    metadata = tuple(("x-request-id", each) for each in ids)
    found = []
    for _ in range(2):
        _, call = stub.GetIndex.with_call(pb.GetIndexRequest(), metadata=metadata)
        found += ids_of(call)
    if kept:
        assert found == [*ids, *ids]
    else:
        assert len(set(found)) == 2
        assert all(re.fullmatch("[0-9a-f]{16}", each) for each in found)


def unary(method: Any, request: Any, **how: Any) -> Any:
    """The call when it has ended, in whichever way."""
    try:
        return method.with_call(request, **how)[1]
    except grpc.RpcError as error:
        return error


def test_every_answer_brings_it(synthetic: Synthetic, serve: Serve, tmp_path: Path) -> None:
    tokens, ada, slow = tmp_path / "tokens", new_token(), new_token()
    tokens.write_text(f"{line_of('ada', ada)}\n{line_of('slow', slow, Rate.of('1/h'))}\n")
    options = ("--tokens", str(tokens), "--reflection")
    server = serve(synthetic.path, options=options, program=PROGRAM)
    index, rows = pb.GetIndexRequest(), pb.GetImagesRequest(rows=[1])
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        check(unary(stub.GetIndex, index, **given(ada)), StatusCode.OK)
        scores = pb.GetScoresRequest(layer=LAYER)
        check(stub.GetScores(scores, **given(ada)), StatusCode.OK)
        nowhere = pb.GetIndexRequest(index="nowhere")
        check(unary(stub.GetIndex, nowhere, **given(ada)), StatusCode.NOT_FOUND)
        nothing = pb.GetImagesRequest(rows=[10**6])
        check(stub.GetImages(nothing, **given(ada)), StatusCode.NOT_FOUND)
        # Without a token, with one that is used up, and for a method that is not there.
        check(unary(stub.GetIndex, index, **given()), StatusCode.UNAUTHENTICATED)
        check(stub.GetImages(rows, **given()), StatusCode.UNAUTHENTICATED)
        check(unary(stub.GetIndex, index, **given(slow)), StatusCode.OK)
        late = unary(stub.GetIndex, index, **given(slow))
        check(late, StatusCode.RESOURCE_EXHAUSTED)
        assert dict(late.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
        made_up: Any = channel.unary_unary("/made/up")
        check(unary(made_up, b"", **given(ada)), StatusCode.UNIMPLEMENTED)
        # What cannot be read, and what fails for no good reason.
        odd: Any = channel.unary_stream("/vitscope.v1.ActivationService/GetImages")
        check(odd(b"\xff", **given(ada)), StatusCode.INVALID_ARGUMENT)
        top = pb.TopImagesRequest(layer=LAYER)
        check(unary(stub.TopImages, top, **given(ada)), StatusCode.INTERNAL)
        check(stub.GetImages(rows, **given(ada)), StatusCode.INTERNAL)
        # The other services.
        checks = health_pb2_grpc.HealthStub(channel)
        check(unary(checks.Check, health_pb2.HealthCheckRequest(), **given()), StatusCode.OK)
        unknown = health_pb2.HealthCheckRequest(service="nothing")
        check(unary(checks.Check, unknown, **given()), StatusCode.NOT_FOUND)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        mirror = reflection_pb2_grpc.ServerReflectionStub(channel)
        check(mirror.ServerReflectionInfo(asked, **given(ada)), StatusCode.OK)


def test_a_call_that_is_one_too_many_brings_it(tmp_path: Path, serve: Serve) -> None:
    truth = build(tmp_path / "zoo", complete=True, rows=400)
    server = serve(truth.path, options=("--in-hand", "scan=1"))
    request = pb.GetBoxScoresRequest(layer=LAYER)
    refused: list[tuple[str, Any]] = []
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        while not refused:
            ids = [f"call-{number}" for number in range(16)]
            calls = [stub.GetBoxScores.future(request, **given(request_id=each)) for each in ids]
            ends: list[Any] = [call.exception() for call in calls]
            assert [ids_of(call) for call in calls] == [[each] for each in ids]
            refused = [end for end in zip(ids, ends, strict=True) if end[1]]
    for _, end in refused:
        assert end.code() is StatusCode.RESOURCE_EXHAUSTED
        assert dict(end.trailing_metadata())["grpc-retry-pushback-ms"] == "500"
