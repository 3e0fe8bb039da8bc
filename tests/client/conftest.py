"""A gRPC server with canned answers, so that the client is tested over a real connection."""

# ruff: noqa: N802  the methods bear the names of the rpcs

import io
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from PIL import Image

from vitscope.v1 import index_pb2, query_pb2, service_pb2_grpc

LAYER = "blocks.1.mlp"
ROWS = 6
GRID = (2, 3)
ESCAPE = "\x1b]0;owned\x07"


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def grid(row: int) -> np.ndarray[tuple[int, int], np.dtype[np.float16]]:
    return (np.arange(6).reshape(GRID) + row / 8).astype(np.float16)


def scored(row: int) -> query_pb2.ScoredImage:
    label = None if row == 2 else f"class {row}"
    return query_pb2.ScoredImage(row=row, key=f"../{row}{ESCAPE}.jpg", label=label, score=9.5 - row)


def maps_of(rows: list[int], channel: int) -> query_pb2.PatchMaps:
    return query_pb2.PatchMaps(
        layer=LAYER,
        rows=rows,
        channels=[channel] * len(rows),
        height=GRID[0],
        width=GRID[1],
        values=b"".join(grid(row).astype("<f2").tobytes() for row in rows),
    )


def index_message() -> index_pb2.Index:
    layer = index_pb2.Layer(
        name=LAYER,
        depth=1,
        channels=16,
        tokens=index_pb2.TokenLayout(prefix=["cls"], height=GRID[0], width=GRID[1]),
        poolings=[index_pb2.POOLING_MEAN, index_pb2.POOLING_CLS],
        maps_per_channel=2,
    )
    model = index_pb2.Model(
        name="vit_test",
        weights_sha256="ab" * 32,
        weights_source="random",
        input_height=64,
        input_width=96,
        dtype="float32",
    )
    return index_pb2.Index(
        name="canned", generation="g7", model=model, rows=ROWS, valid_rows=5, layers=[layer]
    )


class CannedService(service_pb2_grpc.ActivationServiceServicer):
    """Answers for one layer of six rows, the last of them unreadable; maps of rows 0 and 1."""

    def ListIndexes(
        self, request: query_pb2.ListIndexesRequest, context: grpc.ServicerContext
    ) -> query_pb2.ListIndexesResponse:
        index = index_message()
        del index.layers[:]
        return query_pb2.ListIndexesResponse(indexes=[index])

    def GetIndex(
        self, request: query_pb2.GetIndexRequest, context: grpc.ServicerContext
    ) -> query_pb2.GetIndexResponse:
        if request.index not in ("", "canned"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"no index {request.index!r}")
        return query_pb2.GetIndexResponse(index=index_message())

    def TopImages(
        self, request: query_pb2.TopImagesRequest, context: grpc.ServicerContext
    ) -> query_pb2.TopImagesResponse:
        if request.layer != LAYER:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no layer {request.layer!r}")
        count = request.k if request.HasField("k") else 5
        if not 1 <= count <= 5:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"k is {count}; give 1 to 5")
        return query_pb2.TopImagesResponse(
            generation="g7",
            pooling=request.pooling,
            images=[scored(row) for row in range(count)],
            maps=maps_of([0, 1][:count], request.channel) if request.include_maps else None,
        )

    def GetPatchMaps(
        self, request: query_pb2.GetPatchMapsRequest, context: grpc.ServicerContext
    ) -> Iterator[query_pb2.GetPatchMapsResponse]:
        for selector in request.maps:
            if selector.row > 1:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"no map of {selector.row}")
            maps = maps_of([selector.row], selector.channel)
            maps.layer = selector.layer
            yield query_pb2.GetPatchMapsResponse(generation="g7", maps=maps)

    def SimilarImages(
        self, request: query_pb2.SimilarImagesRequest, context: grpc.ServicerContext
    ) -> query_pb2.SimilarImagesResponse:
        rows = [row for row in range(5) if row != request.row]
        return query_pb2.SimilarImagesResponse(
            generation="g7", images=map(scored, rows), exact=False, recall_at_10=0.5
        )

    def GetImages(
        self, request: query_pb2.GetImagesRequest, context: grpc.ServicerContext
    ) -> Iterator[query_pb2.GetImagesResponse]:
        for row in request.rows:
            image = scored(row)
            yield query_pb2.GetImagesResponse(
                generation="g7",
                images=[
                    query_pb2.Image(
                        row=row,
                        key=image.key,
                        label=image.label if image.HasField("label") else None,
                        valid=row < 5,
                        invalid_reason="" if row < 5 else "truncated",
                        jpeg=jpeg() if row < 5 else b"",
                    )
                ],
            )


@pytest.fixture(scope="session")
def server_address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_ActivationServiceServicer_to_server(CannedService(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def silent_address() -> str:
    """An address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
