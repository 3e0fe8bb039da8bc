"""Whatever bytes come, as requests or as HTTP/2: a status that is foreseen, and the server goes on.

How long and from which seed: `mutations`.
"""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mutations import chances, field, fields, mutated, nested, varint
from processes import usage_of
from started import ServerProcess
from synthetic import Synthetic

from vitscope.v1 import query_pb2 as pb
from vitscope.v1 import service_pb2
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]

SERVICE = service_pb2.DESCRIPTOR.services_by_name["ActivationService"]
LAYER = "blocks.0.mlp"
BATCH = 100
AT_ONCE = 4
REPLIES = 50
"""Of a stream, that are read."""
PATIENCE = 60.0
QUIET = 0.05
"""Seconds without a byte after which a connection is not listened to any longer."""
FORESEEN = {
    StatusCode.OK,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.RESOURCE_EXHAUSTED,
}
LEAKS = (b"Traceback", b'File "', b".py", b"site-packages", b"vitscope.server", b"vitscope.store")


def valid(method: str, **fields: Any) -> bytes:
    request: bytes = getattr(pb, f"{method}Request")(**fields).SerializeToString()
    return request


def layered(method: str, **fields: Any) -> bytes:
    return valid(method, layer=LAYER, **fields)


FILTER = pb.ImageFilter(labels=["fox"], rows=range(1, 60), has_box=True, box_labels=["tail"])
WEIGHTS = pb.ChannelWeights(channels=[1, 2], weights=[0.5, -1.0])
VECTOR = np.ones(5, "<f4").tobytes()
CORPUS: dict[str, Sequence[bytes]] = {
    "ListIndexes": [valid("ListIndexes")],
    "GetIndex": [valid("GetIndex"), valid("GetIndex", index="zoo")],
    "TopImages": [
        layered("TopImages", channel=2, k=5, include_maps=True, filter=FILTER),
        layered("TopImages", band=pb.QuantileBand(low=0.25, high=0.75)),
    ],
    "TopImagesOfChannels": [layered("TopImagesOfChannels", channels=[1, 2, 3], distinct=True)],
    "GetChannelStatistics": [layered("GetChannelStatistics", channels=[1, 2])],
    "TopPatches": [layered("TopPatches", channel=1, k=7, filter=FILTER)],
    "TopChannels": [
        valid("TopChannels", row=2, layers=[LAYER], patch=pb.PatchPlace(y=1, x=1)),
        valid("TopChannels", row=2, measure=pb.MEASURE_PERCENTILE),
        valid("TopChannels", row=2, layers=[LAYER], rectangle=pb.Rectangle(x0=1, y0=1, x1=5, y1=5)),
    ],
    "SimilarChannels": [layered("SimilarChannels", channel=1, k=3, layers=["blocks.1.mlp"])],
    "GetBoxScores": [layered("GetBoxScores", channels=[1], box_labels=["tail"], filter=FILTER)],
    "TopImagesByBox": [layered("TopImagesByBox", channel=1, k=3, order=pb.ORDER_BOTTOM)],
    "GetPatchMaps": [
        valid("GetPatchMaps", maps=[pb.PatchMapSelector(layer=LAYER, channel=1, row=2)] * 2),
        valid("GetPatchMaps", grids=[pb.PatchMapGrid(layer=LAYER, rows=[1, 2], channels=[0, 3])]),
    ],
    "SimilarImages": [layered("SimilarImages", row=2, k=3, exact=True)],
    "SimilarPatches": [layered("SimilarPatches", row=2, k=3, patch=pb.PatchPlace(y=1, x=0))],
    "TopImagesAlongDirection": [
        layered("TopImagesAlongDirection", direction=pb.Direction(vector=VECTOR), k=4),
        layered("TopImagesAlongDirection", direction=pb.Direction(weights=WEIGHTS), k=4),
    ],
    "ListDirections": [layered("ListDirections")],
    "AnalyzeImage": [valid("AnalyzeImage", picture=bytes(range(64)))],
    "CompareChannels": [layered("CompareChannels", other="zoo", k=3, filter=FILTER)],
    "CompareImages": [layered("CompareImages", other="zoo", channel=1, k=3)],
    "GetScores": [layered("GetScores", channels=[1, 4])],
    "GetImages": [valid("GetImages", rows=[1, 2, 3]), valid("GetImages", rows=range(50))],
}
ALL = [request for requests in CORPUS.values() for request in requests]


def path_of(method: str) -> str:
    return f"/{SERVICE.full_name}/{method}"


@pytest.fixture(scope="module")
def server(truth: Synthetic, serve: Serve) -> ServerProcess:
    return serve(truth.path)


class Watch:
    """The server before, and that it is the same after."""

    def __init__(self, server: ServerProcess, truth: Synthetic) -> None:
        self._server = server
        self._truth = truth
        self.check()
        self._files = usage_of(server.process.pid).files

    def check(self) -> None:
        """It serves, and rightly."""
        assert self._server.process.poll() is None
        # gRPC's own log has tracebacks of what it cannot decode.
        assert "A call failed in the server" not in self._server.errors.read_text(errors="replace")
        with grpc.insecure_channel(self._server.address) as channel:
            request = pb.TopImagesRequest(layer=LAYER, channel=4, k=9)
            stub = ActivationServiceStub(channel)
            reply = stub.TopImages(request, timeout=PATIENCE, wait_for_ready=True)
        ranking = self._truth.ranking(LAYER, "mean", 4)[:9]
        assert [(image.row, image.score) for image in reply.images] == ranking

    def check_files(self) -> None:
        """What connections held is let go of."""
        limit = time.monotonic() + PATIENCE
        while usage_of(self._server.process.pid).files > self._files:
            assert time.monotonic() < limit
            time.sleep(0.05)


def check_words(said: bytes, index: Path) -> None:
    for leak in (*LEAKS, str(index.parent).encode()):
        assert leak not in said


def test_every_method_has_requests_that_it_takes(server: ServerProcess) -> None:
    assert set(CORPUS) == set(SERVICE.methods_by_name)
    with grpc.insecure_channel(server.address) as channel:
        for method, requests in CORPUS.items():
            for request in requests:
                code, details = outcome(channel, method, [request])
                # There is no live model.
                wanted = (
                    StatusCode.FAILED_PRECONDITION if method == "AnalyzeImage" else StatusCode.OK
                )
                assert code is wanted, (method, details)


def outcome(
    channel: grpc.Channel, method: str, messages: Sequence[bytes], timeout: float = PATIENCE
) -> tuple[Any, str]:
    """The status of a call with the bytes of these messages, and what it says."""
    make: Any = channel.stream_stream(path_of(method))
    call = make(iter(messages), timeout=timeout)
    try:
        count = sum(1 for _ in islice(call, REPLIES))
    except grpc.RpcError:
        return call.code(), call.details() or ""
    if count == REPLIES:
        call.cancel()
        return StatusCode.OK, ""
    return call.code(), call.details() or ""


def a_request(chance: random.Random) -> tuple[str, bytes]:
    """A method and bytes, of which some are a request."""
    method = chance.choice(list(CORPUS))
    how = chance.randrange(8)
    if how == 0:
        return method, chance.randbytes(chance.choice([1, 10, 1000]))
    if how == 1:
        return method, fields(chance)
    if how == 2:
        return method, nested(chance)
    own = chance.choice(CORPUS[method])
    if how == 3:
        return method, own + field(chance)
    if how == 4:
        return method, own * chance.choice([2, 200])
    if how == 5:
        return method, chance.choice(ALL)
    if how == 6 and chance.random() < 0.1:
        # A text, or a list, nearly as long as a message may be.
        many = chance.choice([10_000, 1_000_000, (4 << 20) - 100])
        head = varint(chance.randrange(1, 8) << 3 | 2)
        return method, own + head + varint(many) + bytes([chance.randrange(256)]) * many
    return method, mutated(chance, own, ALL)


def test_bytes_of_requests(server: ServerProcess, truth: Synthetic) -> None:
    watch = Watch(server, truth)
    seen: Counter[tuple[str, StatusCode]] = Counter()

    def ask(channel: grpc.Channel, asked: tuple[str, bytes]) -> None:
        method, request = asked
        code, details = outcome(channel, method, [request])
        assert code in FORESEEN, (method, request[:500].hex(), len(request), code, details)
        assert "\n" not in details, (method, request[:500].hex(), details)
        check_words(details.encode(), truth.path)
        seen[method, code] += 1

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for chance in chances():
            with grpc.insecure_channel(server.address) as channel:
                tasks = [pool.submit(ask, channel, a_request(chance)) for _ in range(BATCH)]
                for task in tasks:
                    task.result()
            watch.check()
    watch.check_files()
    print({code.name: sum(n for (_, c), n in seen.items() if c is code) for code in FORESEEN})


@pytest.mark.parametrize("count", [0, 2, 3])
def test_messages_too_few_or_too_many(server: ServerProcess, truth: Synthetic, count: int) -> None:
    """gRPC's own affair, but it says nothing of the server and leaves nothing behind."""
    watch = Watch(server, truth)
    with grpc.insecure_channel(server.address) as channel:
        for method, requests in CORPUS.items():
            code, details = outcome(channel, method, [requests[0]] * count, 0.5)
            print(method, count, code, details)
            check_words(details.encode(), truth.path)
    watch.check()
    watch.check_files()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


def text(value: bytes) -> bytes:
    """As HPACK has it, not compressed."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    return b"\x7f" + varint(len(value) - 127) + value


def headers(chance: random.Random, path: str) -> bytes:
    """Those of a call, some of them odd."""
    pairs = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    odd = [
        (b":method", b"GET"),
        (b":path", b"/../../etc/passwd"),
        (b":path", b"\xff\xfe"),
        (b":status", b"200"),
        (b"content-type", b"text/html"),
        (b"grpc-encoding", chance.choice([b"gzip", b"deflate", b"identity", b"nonsense"])),
        (b"grpc-timeout", chance.choice([b"1n", b"99999999H", b"-1S", b"1", b"x" * 100])),
        (b"grpc-accept-encoding", b"\0" * 20),
        (b"some-bin", b"not base64!"),
        (b"authorization", b"Bearer " + chance.randbytes(20)),
        (b"upper", b"x" * chance.choice([1, 1000, 20_000])),
        (chance.randbytes(5), chance.randbytes(5)),
        (b"", b""),
    ]
    while chance.random() < 0.4:
        pairs.insert(chance.randrange(len(pairs) + 1), chance.choice(odd))
    while chance.random() < 0.1:
        pairs.pop(chance.randrange(len(pairs)))
    return b"".join(b"\0" + text(name) + text(value) for name, value in pairs)


def message(chance: random.Random, data: bytes) -> bytes:
    """With gRPC's prefix, which may lie."""
    length = chance.choice([len(data)] * 4 + [0, len(data) + 1, 2**22 + 1, 2**32 - 1])
    return bytes([chance.choice([0, 0, 0, 1, 2, 255])]) + length.to_bytes(4, "big") + data


def session(chance: random.Random) -> bytes:
    """All that one connection sends."""
    frames = [frame(SETTINGS, 0, 0, b"")]
    for number in range(chance.randrange(1, 6)):
        stream = 2 * number + 1
        method, request = a_request(chance)
        path = path_of(method) if chance.random() < 0.9 else chance.choice(["", "/", "/a/b", "*"])
        sent = message(chance, request[:10_000])
        frames += [
            frame(HEADERS, END_HEADERS, stream, headers(chance, path)),
            frame(DATA, END_STREAM, stream, sent),
        ]
    if chance.random() < 0.5:
        place = chance.randrange(len(frames) + 1)
        kind, flags, stream = chance.randrange(14), chance.randrange(256), chance.randrange(9)
        frames.insert(place, frame(kind, flags, stream, chance.randbytes(chance.randrange(40))))
    if chance.random() < 0.3:
        place = chance.randrange(len(frames))
        frames[place] = mutated(chance, frames[place], frames)
    if chance.random() < 0.2:
        chance.shuffle(frames)
    whole = PREFACE + b"".join(frames)
    return mutated(chance, whole) if chance.random() < 0.2 else whole


def talk(address: str, sent: bytes) -> bytes:
    """What the server says to these bytes, until it is quiet or hangs up."""
    host, _, port = address.rpartition(":")
    said = bytearray()
    # It may hang up before all is sent, or be started again by what others send.
    with (
        suppress(ConnectionError),
        socket.create_connection((host, int(port)), PATIENCE) as connection,
    ):
        connection.sendall(sent)
        connection.settimeout(QUIET)
        with suppress(TimeoutError):
            while part := connection.recv(1 << 16):
                said += part
    return bytes(said)


def test_a_path_that_is_no_text(server: ServerProcess, truth: Synthetic) -> None:
    """gRPC's own server would end by it, and at times the process."""
    watch = Watch(server, truth)
    for _ in range(3):
        pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/\xff")]
        pairs += [(b":authority", b"x"), (b"te", b"trailers")]
        pairs += [(b"content-type", b"application/grpc")]
        block = b"".join(b"\0" + text(name) + text(value) for name, value in pairs)
        start = PREFACE + frame(SETTINGS, 0, 0, b"")
        talk(server.address, start + frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
        watch.check()
        with grpc.insecure_channel(server.address) as channel:
            asked = health_pb2.HealthCheckRequest()
            check = health_pb2_grpc.HealthStub(channel).Check
            reply = check(asked, timeout=PATIENCE, wait_for_ready=True)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
    watch.check_files()


def lies(chance: random.Random) -> Iterator[bytes]:
    """What is not HTTP/2 at all."""
    yield chance.randbytes(1000)
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"\x16\x03\x01" + chance.randbytes(300)
    yield PREFACE + chance.randbytes(1000)


def test_bytes_of_connections(server: ServerProcess, truth: Synthetic) -> None:
    watch = Watch(server, truth)
    heard = 0
    with ThreadPoolExecutor(2 * AT_ONCE) as pool:
        for chance in chances():
            sent = [*lies(chance), *(session(chance) for _ in range(BATCH))]
            for said in pool.map(talk, [server.address] * len(sent), sent):
                check_words(said, truth.path)
                heard += b"grpc-status" in said
            watch.check()
    watch.check_files()
    print(f"{heard} connections were answered")
    assert heard > 0
