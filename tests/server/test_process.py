"""The server as a process: start, health, reflection, several indexes, damage, and its end."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from server.refusals import check_start_error, refused
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]
SERVICE = "vitscope.v1.ActivationService"


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_is_serving(channel: grpc.Channel, service: str) -> None:
    checks = health_pb2_grpc.HealthStub(channel)
    reply = checks.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    checks = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="nothing")
    assert refused(lambda: checks.Check(request, timeout=60))[0] == StatusCode.NOT_FOUND


def reflected(address: str) -> set[str]:
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        (reply,) = stub.ServerReflectionInfo(iter(requests), timeout=60)
        return {service.name for service in reply.list_services_response.service}


def test_reflection_is_there_with_the_flag_only(
    synthetic: Synthetic, synthetic_server: str, serve: Serve
) -> None:
    server = serve(synthetic.path, options=("--reflection",))
    assert {SERVICE, "grpc.health.v1.Health"} <= reflected(server.address)
    assert refused(lambda: reflected(synthetic_server))[0] == StatusCode.UNIMPLEMENTED


def test_a_caller_that_knows_only_what_reflection_tells_gets_the_same_answers(
    tmp_path: Path, serve: Serve
) -> None:
    """As grpcurl does: descriptors from the server, requests from JSON."""
    server = serve(build(tmp_path / "complete", complete=True).path, options=("--reflection",))
    wide = {"layer": "blocks.0.mlp", "channel": 4, "k": 5}
    asked: dict[str, dict[str, Any]] = {
        "GetIndex": {},
        "TopImages": {**wide, "filter": {"labels": ["fox"]}, "order": "ORDER_BOTTOM"},
        "TopImagesOfChannels": {"layer": "blocks.0.mlp", "channels": [4, 2], "k": 3},
        "GetChannelStatistics": {"layer": "blocks.0.mlp", "pooling": "POOLING_MAX"},
        "TopPatches": {**wide, "k": 3},
        "TopChannels": {"row": "8", "measure": "MEASURE_PERCENTILE"},
        "SimilarChannels": {**wide, "k": 3},
        "SimilarImages": {"layer": "blocks.0.mlp", "row": "8", "k": 5},
        "GetPatchMaps": {
            "grids": [{"layer": "blocks.0.mlp", "rows": ["1"], "channels": [0, 2]}],
            "encoding": "MAP_ENCODING_UINT8",
        },
        "GetImages": {"rows": ["1", "17"]},
        "GetBoxScores": {"layer": "blocks.0.mlp", "boxLabels": ["tail"]},
        "TopImagesByBox": wide,
        "SimilarPatches": {"layer": "blocks.0.mlp", "row": "8", "patch": {"y": 1}},
        "TopImagesAlongDirection": {
            "layer": "blocks.1.mlp",
            "direction": {"weights": {"channels": [3, 7], "weights": [0.5, -2.0]}},
        },
        "ListDirections": {},
        "CompareChannels": {"other": "complete", "layer": "blocks.1.mlp"},
        "CompareImages": {"other": "complete", "layer": "blocks.1.mlp", "channel": 8},
        "GetScores": {"layer": "blocks.1.mlp", "channels": [8, 0]},
    }
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName(SERVICE)
        for name, body in asked.items():
            method = service.methods_by_name[name]
            request = ParseDict(body, GetMessageClass(method.input_type)())
            parse = GetMessageClass(method.output_type).FromString
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            call: Any = make(
                f"/{SERVICE}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=parse,
            )
            known: Any = getattr(pb, f"{name}Request").FromString(request.SerializeToString())
            mine, theirs = call(request, timeout=60), getattr(stub, name)(known, timeout=60)
            if method.server_streaming:
                mine, theirs = list(mine), list(theirs)
                assert len(mine) > 0
            else:
                mine, theirs = [mine], [theirs]
            assert [MessageToDict(each) for each in mine] == [
                MessageToDict(each) for each in theirs
            ]


def test_a_port_in_use_by_another_server(synthetic: Synthetic, synthetic_server: str) -> None:
    text = check_start_error([synthetic.path, "--listen", synthetic_server], 6)
    assert f"Cannot listen on {synthetic_server}: the port is in use" in text
    # The first one has lost nothing.
    with grpc.insecure_channel(synthetic_server) as channel:
        stub = ActivationServiceStub(channel)
        for _ in range(20):
            assert stub.GetIndex(pb.GetIndexRequest(), timeout=60).index.name == "zoo"


def test_a_port_in_use_by_something_else(synthetic: Synthetic) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert address in check_start_error([synthetic.path, "--listen", address], 6)


@pytest.mark.parametrize(
    "listen", ["", "localhost", ":0", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "h:²"]
)
def test_an_address_that_is_none(synthetic: Synthetic, listen: str) -> None:
    text = check_start_error([synthetic.path, "--listen", listen], 6)
    assert f"--listen {listen!r} is not HOST:PORT" in text


@pytest.mark.parametrize("listen", ["256.1.1.1:0", "192.0.2.1:0", f"{'x' * 80}.invalid:0"])
def test_a_host_that_is_not_this_machines(synthetic: Synthetic, listen: str) -> None:
    assert "not this machine's" in check_start_error([synthetic.path, "--listen", listen], 6)


def test_what_is_no_index_is_not_served(tmp_path: Path) -> None:
    text = check_start_error([tmp_path, "--listen", "127.0.0.1:0"], 4)
    assert f"{tmp_path} is not an index" in text


def test_two_indexes_of_one_name_are_not_served(synthetic: Synthetic, synthetic_copy: Path) -> None:
    text = check_start_error([synthetic.path, synthetic_copy, "--listen", "127.0.0.1:0"], 6)
    assert "Two indexes are called 'zoo'" in text


@pytest.mark.parametrize("signal", ["terminate", "interrupt"])
def test_a_signal_right_after_the_start_ends_it_in_good_order(
    synthetic: Synthetic, serve: Serve, signal: str
) -> None:
    for _ in range(3):
        server = serve(synthetic.path)
        assert (server.terminate() if signal == "terminate" else server.interrupt()) == 0
        assert server.errors.read_text() == ""


def test_a_signal_ends_a_server_with_open_connections(synthetic: Synthetic, serve: Serve) -> None:
    server = serve(synthetic.path)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert stub.GetIndex(pb.GetIndexRequest(), timeout=60).index.name == "zoo"
        server.process.terminate()
        # Balancers that watch are told first.
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        assert server.process.wait(60) == 0
        code, _ = refused(lambda: stub.GetIndex(pb.GetIndexRequest(), timeout=60))
        assert code == StatusCode.UNAVAILABLE


def test_two_indexes_at_once(synthetic: Synthetic, serve: Serve, tmp_path: Path) -> None:
    other = build(tmp_path / "аквариум", seed=1, rows=40)
    server = serve(synthetic.path, other.path)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        listed = stub.ListIndexes(pb.ListIndexesRequest(), timeout=60).indexes
        assert {(index.name, index.generation, index.rows) for index in listed} == {
            ("zoo", synthetic.generation, 70),
            ("аквариум", other.generation, 40),
        }
        for truth in (synthetic, other):
            reply = stub.TopImages(
                pb.TopImagesRequest(index=truth.name, layer="blocks.0.mlp", channel=4, k=30)
            )
            assert reply.generation == truth.generation
            ranking = truth.ranking("blocks.0.mlp", "mean", 4)[:30]
            assert [(image.row, image.score) for image in reply.images] == ranking
            (image,) = next(
                iter(stub.GetImages(pb.GetImagesRequest(index=truth.name, rows=[33])))
            ).images
            assert image.jpeg == truth.thumbnails[33]
        unnamed: list[Callable[[], object]] = [
            lambda: stub.GetIndex(pb.GetIndexRequest()),
            lambda: stub.TopImages(pb.TopImagesRequest(layer="blocks.0.mlp")),
            lambda: stub.SimilarImages(pb.SimilarImagesRequest(layer="blocks.0.mlp", row=1)),
            lambda: list(stub.GetImages(pb.GetImagesRequest(rows=[1]))),
            lambda: list(stub.GetPatchMaps(pb.GetPatchMapsRequest())),
        ]
        for call in unnamed:
            code, details = refused(call)
            assert code == StatusCode.INVALID_ARGUMENT
            assert details == "index is not given, and there are several: zoo, аквариум."
        code, details = refused(lambda: stub.GetIndex(pb.GetIndexRequest(index="лес")))
        assert code == StatusCode.NOT_FOUND
        assert details.endswith("this server holds: zoo, аквариум.")


def test_an_index_of_few_images_without_thumbnails(serve: Serve, tmp_path: Path) -> None:
    """Defaults take all there is; one valid image has no neighbours."""
    four = build(tmp_path / "four", rows=4, thumbnails=False)
    three = build(tmp_path / "three", rows=3, thumbnails=False)
    server = serve(four.path, three.path)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        for truth, valid in ((four, [1, 2]), (three, [1])):
            reply = stub.TopImages(
                pb.TopImagesRequest(
                    index=truth.name, layer="blocks.0.mlp", channel=4, include_maps=True
                )
            )
            ranking = truth.ranking("blocks.0.mlp", "mean", 4)
            assert [(image.row, image.score) for image in reply.images] == ranking
            assert sorted(reply.maps.rows) == valid
            near = stub.SimilarImages(
                pb.SimilarImagesRequest(index=truth.name, layer="blocks.0.mlp", row=1)
            )
            assert [image.row for image in near.images] == [row for row in valid if row != 1]
            (reply_images,) = stub.GetImages(pb.GetImagesRequest(index=truth.name, rows=[1]))
            assert [image.jpeg for image in reply_images.images] == [b""]


Damage = Callable[[Path], None]


def flip_all(pattern: str) -> Damage:
    """A bit in every chunk of the files."""

    def damage(folder: Path) -> None:
        files = [path for path in folder.glob(pattern) if path.is_file()]
        assert files
        for path in files:
            data = np.fromfile(path, np.uint8)
            data[7::50] ^= 16
            data.tofile(path)

    return damage


def delete_all(pattern: str) -> Damage:
    def damage(folder: Path) -> None:
        files = [path for path in folder.glob(pattern) if path.is_file()]
        assert files
        for path in files:
            path.unlink()

    return damage


GROUP = "arrays.zarr/layers/blocks.0.mlp"


@pytest.mark.parametrize("damage", [flip_all, delete_all])
def test_damage_behind_a_running_server_is_data_loss(
    synthetic: Synthetic, synthetic_copy: Path, serve: Serve, damage: Callable[[str], Damage]
) -> None:
    server = serve(synthetic_copy)
    folder = synthetic_copy / "generations" / synthetic.generation
    for pattern in (
        f"{GROUP}/scores_mean/c/*/*",
        f"{GROUP}/top_rows_max/c/*/*",
        f"{GROUP}/top_maps_cls/c/*/*/*/*",
        f"{GROUP}/top_scores_mean/zarr.json",
        "arrays.zarr/rows/thumbnail/c/*",
        "faiss/blocks.0.mlp.faiss",
    ):
        damage(pattern)(folder)
    layer = "blocks.0.mlp"
    maps = [pb.PatchMapSelector(layer=layer, channel=4, row=1)]
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        calls: dict[str, Callable[[], Any]] = {
            "scores": lambda: stub.TopImages(pb.TopImagesRequest(layer=layer, channel=4, k=60)),
            "top": lambda: stub.TopImages(
                pb.TopImagesRequest(layer=layer, pooling=index_pb2.POOLING_MAX, k=3)
            ),
            "maps": lambda: stub.TopImages(
                pb.TopImagesRequest(
                    layer=layer, pooling=index_pb2.POOLING_CLS, k=3, include_maps=True
                )
            ),
            "metadata": lambda: stub.TopImages(pb.TopImagesRequest(layer=layer, k=3)),
            "stream of maps": lambda: list(stub.GetPatchMaps(pb.GetPatchMapsRequest(maps=maps))),
            "pictures": lambda: list(stub.GetImages(pb.GetImagesRequest(rows=range(70)))),
            "faiss": lambda: stub.SimilarImages(pb.SimilarImagesRequest(layer=layer, row=1)),
        }
        for name, call in calls.items():
            code, details = refused(call)
            assert code == StatusCode.DATA_LOSS, (name, details)
            assert details.endswith(".")
            assert str(synthetic_copy) not in details
            assert "generations" not in details
            assert not details.startswith("/")
        # What is whole is answered on, and by the same process.
        reply = stub.TopImages(pb.TopImagesRequest(layer="blocks.1.mlp", channel=1, k=65))
        ranking = synthetic.ranking("blocks.1.mlp", "mean", 1)
        assert [(image.row, image.score) for image in reply.images] == ranking
    assert server.terminate() == 0
    assert "Traceback" not in server.errors.read_text()


def test_a_lost_index_folder_is_data_loss_and_not_a_crash(
    synthetic: Synthetic, synthetic_copy: Path, serve: Serve
) -> None:
    server = serve(synthetic_copy)
    shutil.rmtree(synthetic_copy)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        code, details = refused(lambda: stub.TopImages(pb.TopImagesRequest(layer="blocks.0.mlp")))
        assert code == StatusCode.DATA_LOSS
        assert str(synthetic_copy) not in details
        assert stub.GetIndex(pb.GetIndexRequest()).index.generation == synthetic.generation
