"""What every question costs over loopback, alone and under load, beside an empty handler.

    python -m vitscope.bench.questions [--quick] [--json FILE]

A server process over an index of drawn scenes with a layer kept whole, and another whose handlers
return the very bytes of the first one's answers. Callers wait for an answer before they ask again,
over a connection each, all in this process; the two servers take turns, a round each. What callers
and gRPC themselves take is in both figures. Seconds are of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from vitscope.bench import arguments
from vitscope.bench.background import draw
from vitscope.bench.record import Row, compared, show, write
from vitscope.bench.servers import SERVICE, canned, served
from vitscope.indexer.options import Options
from vitscope.indexer.run import index
from vitscope.indexer.scenes.model import MODEL_NAME
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

PACKAGES = ("vitscope", "torch", "timm", "numpy", "tensorstore", "faiss-cpu", "grpcio")
LAYER, CHANNELS = "blocks.3.mlp", 512
CALLERS = (1, 8, 32)
ROUNDS = 5
EMPTY, ANSWER = "empty handler", "answer"


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
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    pictures, seconds = (256, 0.05) if args.quick else (2_000, 0.4)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder), pictures)
        with served(Path(folder) / "index") as address:
            for question in questions(pictures):
                rows += question_rows(address, question, seconds)
    if args.json:
        command = f"python -m vitscope.bench.questions{' --quick' if args.quick else ''}"
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
    return [*of_channels(pictures), *of_layers(), *of_images(pictures)]


def of_channels(pictures: int) -> list[Question]:
    """The best images and patches of channels, their maps, and their boxes."""
    channels = range(0, CHANNELS, 3)
    some = pb.ImageFilter(rows=range(0, pictures, 2))
    top = [pb.TopImagesRequest(layer=LAYER, channel=c, k=20) for c in channels]
    return [
        Question("top 20 images", "TopImages", top),
        Question("top 20 images with maps", "TopImages", _changed(top, include_maps=True)),
        Question("top 20 of half of the images", "TopImages", _changed(top, filter=some)),
        Question("top 20 distinct images", "TopImages", _changed(top, distinct=True)),
        Question(
            "top 20 images of 64 channels",
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
    ]


def of_layers() -> list[Question]:
    """About many channels at once."""
    weights = np.random.default_rng(0).standard_normal((16, CHANNELS), np.float32)
    return [
        Question(
            "statistics of a layer",
            "GetChannelStatistics",
            [pb.GetChannelStatisticsRequest(layer=LAYER)],
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
            "scores of 8 channels",
            "GetScores",
            [
                pb.GetScoresRequest(layer=LAYER, channels=range(c, c + 8))
                for c in range(0, CHANNELS, 8)
            ],
        ),
    ]


def of_images(pictures: int) -> list[Question]:
    """From images and patches to channels, and to others like them."""
    rows = range(0, pictures, 7)
    return [
        Question(
            "top channels of an image",
            "TopChannels",
            [pb.TopChannelsRequest(row=r) for r in rows],
        ),
        Question(
            "top channels by percentile",
            "TopChannels",
            [pb.TopChannelsRequest(row=r, measure=pb.MEASURE_PERCENTILE) for r in rows],
        ),
        Question(
            "top channels of a patch",
            "TopChannels",
            [
                pb.TopChannelsRequest(row=r, layers=[LAYER], patch=pb.PatchPlace(y=3, x=4))
                for r in rows
            ],
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
            "20 pictures",
            "GetImages",
            [pb.GetImagesRequest(rows=range(r, r + 20)) for r in range(0, pictures - 20, 20)],
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
            sides: dict[str, list[list[float]]] = {EMPTY: [], ANSWER: []}
            for _ in range(ROUNDS):
                for name, server in ((ANSWER, address), (EMPTY, empty)):
                    sides[name].append(asyncio.run(load(server, question, callers, seconds)))
            rows.append(row_of(question, callers, sides, sum(map(len, replies))))
            show(rows[-1:])
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


def row_of(
    question: Question, callers: int, sides: Mapping[str, Sequence[Sequence[float]]], size: int
) -> Row:
    """One row of the result: medians of rounds; of all calls, 99th percentiles and how many."""
    whole = {name: np.concatenate(rounds) for name, rounds in sides.items()}
    return compared(
        f"{question.name}, {callers} callers" if callers > 1 else question.name,
        {name: [statistics.median(some) for some in rounds] for name, rounds in sides.items()},
        EMPTY,
        work={"trips": 1, "moved": size},
        method=question.method,
        callers=callers,
        calls={name: len(taken) for name, taken in whole.items()},
        p99_ms={name: float(np.percentile(taken, 99)) for name, taken in whole.items()},
        calls_per_second={
            name: callers * len(taken) / taken.sum() * 1e3 for name, taken in whole.items()
        },
    )


if __name__ == "__main__":
    raise SystemExit(main())
