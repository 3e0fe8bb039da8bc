"""Patch maps of any image, where a layer keeps all activations; against plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import oracle
import pytest
from pictures import write_pictures
from started import ServerProcess

from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.run import index
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

ROWS = 12
KEPT, OTHER = "blocks.2.mlp", "blocks.3.mlp"


def test_maps_of_any_image(tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.safetensors"
    oracle.save_random_model("test_vit", checkpoint)
    files = write_pictures(tmp_path / "pictures", ROWS)
    options = Options(
        device="cpu",
        model="test_vit",
        data=tmp_path / "pictures",
        out=tmp_path / "index",
        weights=Weights(checkpoint),
        top_k=1,
        batch_size=ROWS,
        unit_rows=ROWS,
        retain_all=(KEPT,),
    )
    index(options)
    model = oracle.load("test_vit", checkpoint)
    [truth] = oracle.activations(model, files, ROWS)
    server = ServerProcess(tmp_path / "index", options=(), errors=tmp_path / "stderr")
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub = ActivationServiceStub(channel)
            asked = [(c, row) for c in (0, 7, 100) for row in range(ROWS)]
            selectors = [pb.PatchMapSelector(layer=KEPT, channel=c, row=row) for c, row in asked]
            [reply] = stub.GetPatchMaps(pb.GetPatchMapsRequest(maps=selectors))
            maps = np.frombuffer(reply.maps.values, "<f2").reshape(len(asked), 10, 10)
            for found, (c, row) in zip(maps, asked, strict=True):
                expected = truth[KEPT][row, 1:, c].astype(np.float16).reshape(10, 10)
                assert np.array_equal(found, expected)
            # Its neighbour keeps one map a channel and pooling: most rows have none.
            selectors = [pb.PatchMapSelector(layer=OTHER, channel=0, row=r) for r in range(ROWS)]
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.GetPatchMaps(pb.GetPatchMapsRequest(maps=selectors)))
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    finally:
        server.close()
