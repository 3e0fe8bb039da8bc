"""What an answer costs, over loopback and from the store.

    python -m vitscope.bench.answers [--quick] [--json FILE]

Ratios are of medians of interleaved rounds in one run; seconds are of this machine.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import grpc

from vitscope.bench import arguments
from vitscope.bench.record import Row, compared, show, timed, write
from vitscope.bench.servers import canned, served
from vitscope.indexer.options import Options
from vitscope.indexer.run import index
from vitscope.indexer.scenes import write_scenes
from vitscope.indexer.scenes.model import MODEL_NAME
from vitscope.store.generation import open_generation
from vitscope.v1 import query_pb2
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

PACKAGES = ("vitscope", "torch", "timm", "numpy", "tensorstore", "faiss-cpu", "grpcio")


def main() -> int:
    """Run everything, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = answer_rows(Path(folder), 200 if args.quick else 2_000)
    show(rows)
    if args.json:
        command = f"python -m vitscope.bench.answers{' --quick' if args.quick else ''}"
        write(args.json, command, rows, PACKAGES)
    return 0


def answer_rows(folder: Path, calls: int) -> list[Row]:
    """Isolates query and conversion: the same bytes from an empty handler on the same loop."""
    write_scenes(folder / "scenes", 256)
    index(
        Options(model=MODEL_NAME, data=folder / "scenes" / "images", out=folder / "index", top_k=50)
    )
    layer = "blocks.3.mlp"
    rows = []
    with served(folder / "index") as address, grpc.insecure_channel(address) as channel:
        stub = ActivationServiceStub(channel)
        for k, maps in ((20, True), (50, True), (200, False)):
            requests = [
                query_pb2.TopImagesRequest(layer=layer, channel=c, k=k, include_maps=maps)
                for c in range(0, 512, 7)
            ]
            reply = stub.TopImages(requests[0]).SerializeToString()
            with canned("TopImages", [reply]) as other, grpc.insecure_channel(other) as plain:
                empty = ActivationServiceStub(plain)
                ours, floor = [], []
                for number in range(calls):
                    request = requests[number % len(requests)]
                    ours.append(timed(stub.TopImages, request))
                    floor.append(timed(empty.TopImages, request))
            what = f"top-images over loopback, k = {k}{', with maps' if maps else ', scan'}"
            sides = {"empty handler": floor, "answer": ours}
            work = {"trips": 1, "moved": len(reply)}
            rows.append(compared(what, sides, "empty handler", work=work))
    rows.append(maps_row(folder / "index", layer))
    return rows


def maps_row(path: Path, layer: str) -> Row:
    """Isolates the store: all kept maps of a channel, each channel once, against a memory copy."""
    generation = open_generation(path)
    first = generation.top_maps(layer, "max", 0, slice(None))
    ours, floor = [], []
    for channel in range(1, 500):
        ours.append(timed(generation.top_maps, layer, "max", channel, slice(None)))
        floor.append(timed(first.copy))
    what = f"{len(first)} maps of a channel from the store"
    sides = {"memory copy": floor, "maps": ours}
    return compared(what, sides, "memory copy", work={"moved": first.nbytes})


if __name__ == "__main__":
    raise SystemExit(main())
