"""What every question costs over loopback, alone and under load, beside an empty handler.

    python benchmarks/questions.py [--quick] [--json FILE]

A server process over an index of drawn scenes with a layer kept whole, and another whose handlers
return the very bytes of the first one's answers. Callers wait for an answer before they ask again,
over a connection each, all in this process; the two servers take turns, a round each. What callers
and gRPC themselves take is in both figures. Seconds are of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from answers import served
from background import draw
from record import Row, write

from vitscope.indexer.options import Options
from vitscope.indexer.run import index
from vitscope.indexer.scenes.model import MODEL_NAME
from vitscope.v1 import query_pb2 as pb
from vitscope.v1 import service_pb2
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

PACKAGES = ("vitscope", "torch", "timm", "numpy", "tensorstore", "faiss-cpu", "grpcio")
SERVICE = service_pb2.DESCRIPTOR.services_by_name["ActivationService"]
LAYER, CHANNELS = "blocks.3.mlp", 512
CALLERS = (1, 8, 32)
ROUNDS = 5


@dataclass(frozen=True)
class Question:
    """Calls of one method that differ in what they ask about."""

    name: str
    method: str
    requests: Sequence[Any]


def main() -> int:
    """Ask everything, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="fewer pictures and calls")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    pictures, seconds = (256, 0.05) if args.quick else (2_000, 0.4)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder), pictures)
        with served(Path(folder) / "index") as address:
            for question in questions(pictures):
                rows += question_rows(address, question, seconds)
    if args.json:
        command = f"python benchmarks/questions.py{' --quick' if args.quick else ''}"
        write(args.json, command, rows, PACKAGES)
    return 0


def make_index(folder: Path, pictures: int) -> None:
    """Of drawn scenes with their boxes, one layer kept whole."""
    index(
        Options(
            model=MODEL_NAME,
            data=draw(folder / "scenes", pictures),
            out=folder / "index",
            top_k=100,
            retain_all=(LAYER,),
        )
    )


def questions(pictures: int) -> list[Question]:
    """One of every kind, about a different channel, image or patch each time."""
    channels = range(0, CHANNELS, 3)
    rows = range(0, pictures, 7)
    some = pb.ImageFilter(rows=range(0, pictures, 2))
    weights = np.random.default_rng(0).standard_normal((16, CHANNELS), np.float32)
    top = [pb.TopImagesRequest(layer=LAYER, channel=c, k=20) for c in channels]
    return [
        Question("top 20 images", "TopImages", top),
        Question("… with maps", "TopImages", _changed(top, include_maps=True)),
        Question("… of half of the images", "TopImages", _changed(top, filter=some)),
        Question("… distinct", "TopImages", _changed(top, distinct=True)),
        Question(
            "… of 64 channels",
            "TopImagesOfChannels",
            [
                pb.TopImagesOfChannelsRequest(layer=LAYER, k=20, channels=range(c, c + 64))
                for c in range(0, CHANNELS - 64, 16)
            ],
        ),
        Question(
            "50 maps of a channel",
            "GetPatchMaps",
            [
                pb.GetPatchMapsRequest(
                    grids=[pb.PatchMapGrid(layer=LAYER, rows=range(50), channels=[c])]
                )
                for c in channels
            ],
        ),
        Question(
            "top 20 patches",
            "TopPatches",
            [pb.TopPatchesRequest(layer=LAYER, channel=c) for c in channels],
        ),
        Question(
            "top channels of an image",
            "TopChannels",
            [pb.TopChannelsRequest(row=r) for r in rows],
        ),
        Question(
            "… by percentile",
            "TopChannels",
            [pb.TopChannelsRequest(row=r, measure=pb.MEASURE_PERCENTILE) for r in rows],
        ),
        Question(
            "… of a patch",
            "TopChannels",
            [
                pb.TopChannelsRequest(row=r, layers=[LAYER], patch=pb.PatchPlace(y=3, x=4))
                for r in rows
            ],
        ),
        Question(
            "statistics of a layer",
            "GetChannelStatistics",
            [pb.GetChannelStatisticsRequest(layer=LAYER)],
        ),
        Question(
            "similar channels",
            "SimilarChannels",
            [pb.SimilarChannelsRequest(layer=LAYER, channel=c) for c in channels],
        ),
        Question(
            "box scores of a channel",
            "GetBoxScores",
            [pb.GetBoxScoresRequest(layer=LAYER, channels=[c]) for c in channels],
        ),
        Question(
            "images by box",
            "TopImagesByBox",
            [pb.TopImagesByBoxRequest(layer=LAYER, channel=c) for c in channels],
        ),
        Question(
            "similar images",
            "SimilarImages",
            [pb.SimilarImagesRequest(layer=LAYER, row=r) for r in rows],
        ),
        Question(
            "similar patches",
            "SimilarPatches",
            [
                pb.SimilarPatchesRequest(layer=LAYER, row=r, patch=pb.PatchPlace(y=2, x=5))
                for r in rows
            ],
        ),
        Question(
            "images along a direction",
            "TopImagesAlongDirection",
            [
                pb.TopImagesAlongDirectionRequest(
                    layer=LAYER, direction=pb.Direction(vector=vector.tobytes())
                )
                for vector in weights
            ],
        ),
        Question(
            "channels between two indexes",
            "CompareChannels",
            [pb.CompareChannelsRequest(other="index", layer=f"blocks.{n}.mlp") for n in range(6)],
        ),
        Question(
            "20 pictures",
            "GetImages",
            [pb.GetImagesRequest(rows=range(r, r + 20)) for r in range(0, pictures - 20, 20)],
        ),
        Question(
            "scores of 8 channels",
            "GetScores",
            [
                pb.GetScoresRequest(layer=LAYER, channels=range(c, c + 8))
                for c in range(0, CHANNELS, 8)
            ],
        ),
    ]


def _changed(requests: Sequence[pb.TopImagesRequest], **fields: Any) -> list[pb.TopImagesRequest]:
    found = []
    for request in requests:
        other = pb.TopImagesRequest(**fields)
        other.MergeFrom(request)
        found.append(other)
    return found


def question_rows(address: str, question: Question, seconds: float) -> list[Row]:
    """What a question takes with each number of callers."""
    with grpc.insecure_channel(address) as channel:
        stub = ActivationServiceStub(channel)
        reply = getattr(stub, question.method)(question.requests[0])
        streamed = SERVICE.methods_by_name[question.method].server_streaming
        replies = [each.SerializeToString() for each in (reply if streamed else [reply])]
    rows = []
    with canned(question.method, replies) as empty:
        for callers in CALLERS:
            sides: dict[str, list[float]] = {"answer": [], "empty handler": []}
            for _ in range(ROUNDS):
                for name, server in (("answer", address), ("empty handler", empty)):
                    sides[name] += asyncio.run(load(server, question, callers, seconds))
            rows.append(row_of(question, callers, sides, sum(map(len, replies))))
            show(rows[-1])
    return rows


async def load(address: str, question: Question, callers: int, seconds: float) -> list[float]:
    """Milliseconds of every call that a number of callers make, each after its last one's end."""
    requests = itertools.cycle(question.requests)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    taken: list[float] = []

    async def call(stub: Any) -> float:
        start = time.perf_counter()
        answer = getattr(stub, question.method)(next(requests))
        if SERVICE.methods_by_name[question.method].server_streaming:
            async for _ in answer:
                pass
        else:
            await answer
        return (time.perf_counter() - start) * 1e3

    async def ask(channel: grpc.aio.Channel) -> None:
        stub = ActivationServiceStub(channel)
        while time.perf_counter() < end:
            taken.append(await call(stub))

    channels = [grpc.aio.insecure_channel(address, options) for _ in range(callers)]
    # Connected before it is measured.
    await asyncio.gather(*(call(ActivationServiceStub(channel)) for channel in channels))
    end = time.perf_counter() + seconds
    await asyncio.gather(*map(ask, channels))
    await asyncio.gather(*(channel.close() for channel in channels))
    return taken


@contextmanager
def canned(method: str, replies: Sequence[bytes], workers: int = 1) -> Iterator[str]:
    """Processes on one port with an asyncio server whose handler only returns `replies`."""
    spawn = multiprocessing.get_context("spawn")
    address = "127.0.0.1:0"
    with ExitStack() as stack:
        for _ in range(workers):
            here, there = spawn.Pipe()
            given = (method, replies, address, there)
            process = spawn.Process(target=_serve, args=given, daemon=True)
            process.start()
            stack.callback(process.terminate)
            address = here.recv()
        yield address


def _serve(method: str, replies: Sequence[bytes], address: str, told: Connection) -> None:
    async def one(_: bytes, __: Any) -> bytes:
        return replies[0]

    async def several(_: bytes, __: Any) -> Any:
        for reply in replies:
            yield reply

    async def run() -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
        handler: Any = grpc.unary_unary_rpc_method_handler(one)
        if SERVICE.methods_by_name[method].server_streaming:
            handler = grpc.unary_stream_rpc_method_handler(several)
        generic = grpc.method_handlers_generic_handler(SERVICE.full_name, {method: handler})
        server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port(address)
        await server.start()
        told.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    asyncio.run(run())


def row_of(
    question: Question, callers: int, sides: Mapping[str, Sequence[float]], size: int
) -> Row:
    """One row of the result: medians, 99th percentiles and calls a second of both servers."""
    found = {
        name: {
            "calls": len(taken),
            "p50_ms": statistics.median(taken),
            "p99_ms": float(np.percentile(taken, 99)),
            "calls_per_second": callers * len(taken) / sum(taken) * 1e3,
        }
        for name, taken in sides.items()
    }
    return {
        "what": question.name,
        "method": question.method,
        "callers": callers,
        "reply_bytes": size,
        "p50_ratio": found["answer"]["p50_ms"] / found["empty handler"]["p50_ms"],
        "sides": found,
    }


def show(row: Row) -> None:
    """Print a row of the table."""
    ours, empty = row["sides"].values()
    print(
        f"{row['what'] if row['callers'] == CALLERS[0] else '':<26} {row['callers']:>3} callers "
        f"{ours['p50_ms']:>8.2f} {ours['p99_ms']:>8.2f} ms   empty {empty['p50_ms']:>7.2f} "
        f"{empty['p99_ms']:>7.2f} ms   x {row['p50_ratio']:>5.2f}  "
        f"{ours['calls_per_second']:>7.0f}/s  {row['reply_bytes']:>9,} bytes",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
