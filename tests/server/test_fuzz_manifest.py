"""Manifests that are not what an index needs: one sentence, or right answers, and no way between.

Most have the name that their digest makes, as if they had been published so. How long and from
which seed: `mutations`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from mutations import chances, changed, mutated
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.server.local import LocalService
from vitscope.store.errors import StoreError
from vitscope.store.generation import generation_name
from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]

FOLLOW = 0.05
PATIENCE = 60.0
LAYER = "blocks.0.mlp"
FORESEEN = {
    StatusCode.OK,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.DATA_LOSS,
}
STREAMS = ("GetPatchMaps", "GetImages", "TopImagesOfChannels", "GetScores")


@pytest.fixture
def index(tmp_path: Path) -> Synthetic:
    return build(tmp_path / "zoo", complete=True, rows=40)


def a_manifest(chance: random.Random, whole: bytes) -> bytes:
    """One with other bytes, or other JSON."""
    if chance.random() < 0.2:
        return mutated(chance, whole, [whole])
    body = json.loads(whole)
    # So many that hardly anything else would be changed.
    files = body.pop("files")
    if chance.random() < 0.3:
        some = dict(chance.sample(sorted(files.items()), 3))
        files |= {str(name): value for name, value in changed(chance, some).items()}
        for name in some.keys() - files.keys() if chance.random() < 0.5 else ():
            del files[name]
    else:
        body = changed(chance, body)
    return json.dumps({**body, "files": files}).encode()


def questions(manifest: Any) -> Iterator[Any]:
    """Of every kind, about the first and the last of what the manifest says there is."""
    last = manifest["rows"] - 1
    yield pb.ListIndexesRequest()
    yield pb.GetIndexRequest()
    yield pb.GetImagesRequest(rows=[0, 1, last])
    yield pb.TopChannelsRequest(row=1, measure=pb.MEASURE_PERCENTILE)
    for layer in manifest["layers"]:
        of: dict[str, Any] = {"layer": layer["name"]}
        for channel in (0, layer["channels"] - 1):
            yield pb.TopImagesRequest(**of, channel=channel, include_maps=True)
            yield pb.TopPatchesRequest(**of, channel=channel)
            yield pb.SimilarChannelsRequest(**of, channel=channel)
            yield pb.TopImagesByBoxRequest(**of, channel=channel)
            yield pb.CompareImagesRequest(**of, channel=channel, other="zoo")
        yield pb.TopImagesOfChannelsRequest(**of, distinct=True)
        yield pb.GetChannelStatisticsRequest(**of, pooling=index_pb2.POOLING_MAX)
        yield pb.TopChannelsRequest(row=2, layers=[layer["name"]], patch=pb.PatchPlace(y=0, x=0))
        yield pb.GetBoxScoresRequest(**of)
        for row in (1, last):
            channels = [0, layer["channels"] - 1]
            grid = pb.PatchMapGrid(**of, rows=[row], channels=channels)
            yield pb.GetPatchMapsRequest(grids=[grid])
            yield pb.SimilarImagesRequest(**of, row=row)
            yield pb.SimilarPatchesRequest(**of, row=row, patch=pb.PatchPlace(y=0, x=0))
        weights = pb.ChannelWeights(channels=[0], weights=[1.0])
        yield pb.TopImagesAlongDirectionRequest(**of, direction=pb.Direction(weights=weights))
        yield pb.ListDirectionsRequest(**of)
        yield pb.GetScoresRequest(**of)
        yield pb.CompareChannelsRequest(**of, other="zoo")


def ask_all(stub: Any, index: Synthetic, data: bytes, seen: Counter[str]) -> None:
    """Every answer has a status that is foreseen, and rankings are right."""
    for request in questions(json.loads(data)):
        code, details, reply = outcome(stub, request)
        seen[code.name] += 1
        assert code in FORESEEN, (request, details)
        if code is not StatusCode.OK:
            check_sentence(details, index)
        elif isinstance(request, pb.TopImagesRequest):
            ranking = index.ranking(request.layer, "mean", request.channel)
            given = [(image.row, image.score) for image in reply.images]
            assert given == ranking[: len(given)]


def outcome(stub: Any, request: Any) -> tuple[StatusCode, str, Any]:
    """The status of a call, what it says, and the reply where there is one."""
    name = type(request).__name__.removesuffix("Request")
    try:
        reply = getattr(stub, name)(request, timeout=PATIENCE)
        return StatusCode.OK, "", list(reply) if name in STREAMS else reply
    except grpc.RpcError as raised:
        error: Any = raised
        return error.code(), error.details() or "", None


def check_sentence(text: str, index: Synthetic) -> None:
    assert text.endswith((".", "?"))
    assert "\n" not in text
    assert "Traceback" not in text
    assert str(index.path.parent) not in text


class Forger:
    """Puts manifests in the place of the one that was published."""

    def __init__(self, index: Synthetic) -> None:
        self._generations = index.path / "generations"
        self._pointer = index.path / "CURRENT"
        self._first = index.folder
        self._last: Path | None = None

    def publish(self, data: bytes, name: str) -> None:
        """A generation called `name` with this manifest and the first one's files."""
        self.clear()
        folder = self._generations / name
        shutil.copytree(self._first, folder, copy_function=os.link)
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").write_bytes(data)
        self._last = folder
        self.point(name)

    def point(self, name: str) -> None:
        """Make it the published one."""
        new = self._pointer.with_name("CURRENT.new")
        new.write_text(f"{name}\n")
        new.replace(self._pointer)

    def clear(self) -> None:
        """Remove what was published last."""
        if self._last:
            shutil.rmtree(self._last)
        self._last = None


def a_name(chance: random.Random, data: bytes) -> str:
    """That of the manifest, or another's."""
    forged = chance.random() < 0.9
    return generation_name(2, data if forged else data + b"other")


def test_manifests_that_are_opened(index: Synthetic) -> None:
    whole = (index.folder / "manifest.json").read_bytes()
    forger, seen = Forger(index), Counter[str]()
    for chance in chances():
        for _ in range(20):
            data = a_manifest(chance, whole)
            forger.publish(data, a_name(chance, data))
            try:
                service = LocalService(index.path)
            except StoreError as error:
                seen[type(error).__name__] += 1
                # For the person who gave the path.
                check_sentence(str(error).replace(str(index.path), ""), index)
            else:
                ask_all(service, index, data, seen)
    print(dict(seen))
    assert seen["OK"] > 0
    assert seen["DamagedIndexError"] > 0


LOST = re.compile(
    r" ERROR File arrays\.zarr/\S+ of the index is not what was published; restore it from a copy\."
    r" request_id=[0-9a-f]{16}$"
)


class Asker(threading.Thread):
    """Asks without pause while generations come and go."""

    def __init__(self, address: str, index: Synthetic) -> None:
        super().__init__()
        self._address = address
        self._ranking = index.ranking(LAYER, "mean", 4)[:9]
        self._over = threading.Event()
        self.answered = 0
        self.failed: list[BaseException] = []

    def run(self) -> None:
        request = pb.TopImagesRequest(layer=LAYER, channel=4, k=9)
        with grpc.insecure_channel(self._address) as channel:
            stub = ActivationServiceStub(channel)
            while not self._over.is_set():
                try:
                    images = stub.TopImages(request, timeout=PATIENCE).images
                    assert [(image.row, image.score) for image in images] == self._ranking
                except BaseException as error:
                    self.failed.append(error)
                self.answered += 1
                time.sleep(0.001)

    def end(self) -> None:
        self._over.set()
        self.join()


def test_manifests_that_are_published_under_a_server(index: Synthetic, serve: Serve) -> None:
    """It serves what it can, and otherwise goes on with the one before."""
    server = serve(index.path, options=("--follow", str(FOLLOW)))
    whole = (index.folder / "manifest.json").read_bytes()
    forger, seen = Forger(index), Counter[str]()
    asker = Asker(server.address, index)
    asker.start()
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub = ActivationServiceStub(channel)
            for chance in chances():
                exchange(chance, whole, index, forger, stub, seen)
    finally:
        asker.end()
    print(dict(seen), asker.answered)
    # Whatever was served had the files of this index.
    codes = {error.code() if isinstance(error, grpc.Call) else error for error in asker.failed}
    assert codes <= {StatusCode.NOT_FOUND, StatusCode.DATA_LOSS}
    said = server.errors.read_text()
    assert "cannot be served" in said
    assert "Traceback" not in said
    # NumPy warns of cells whose products overflow.
    for line in (line for line in said.splitlines() if " ERROR " in line or " INFO " in line):
        stays = "Index 'zoo': generation " in line and line.endswith(".")
        # Served with other sums than its files have: whoever asks for one is told, and the log.
        assert stays or (seen["DATA_LOSS"] and LOST.search(line)), line
    assert server.terminate() == 0


def exchange(
    chance: random.Random,
    whole: bytes,
    index: Synthetic,
    forger: Forger,
    stub: Any,
    seen: Counter[str],
) -> None:
    """Publish one that may be served or not, and then the first one again."""
    data = a_manifest(chance, whole)
    name = a_name(chance, data)
    forger.publish(data, name)
    # Long enough to be looked at.
    time.sleep(4 * FOLLOW)
    now = stub.GetIndex(pb.GetIndexRequest(), timeout=PATIENCE).index.generation
    assert now in (name, index.generation)
    if now == name:
        seen["served"] += 1
        ask_all(stub, index, data, seen)
    else:
        seen["not served"] += 1
    forger.point(index.generation)
    limit = time.monotonic() + PATIENCE
    while stub.GetIndex(pb.GetIndexRequest(), timeout=PATIENCE).index.generation != (
        index.generation
    ):
        assert time.monotonic() < limit
        time.sleep(0.01)
