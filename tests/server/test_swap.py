"""A newly published generation takes the place of the old one: no failed call, no mixed answer.

`VITSCOPE_SWAPS` says how often.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from server.refusals import check_start_error
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.server.errors import InvalidArgumentError
from vitscope.server.questions import QUESTIONS
from vitscope.server.served import Served, index_paths, settle
from vitscope.server.status import StatusInterceptor
from vitscope.store.generation import open_generation
from vitscope.store.prune import prune
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]

SWAPS = int(os.environ.get("VITSCOPE_SWAPS", "6"))
LAYER = "blocks.0.mlp"
PATIENCE = 60.0
QUICK = ("--follow", "0.05")


@dataclass(frozen=True)
class Pair:
    """An index with two generations, of which the first one is published."""

    path: Path
    truths: dict[str, Synthetic]
    """By the names of their generations."""

    @property
    def names(self) -> list[str]:
        return list(self.truths)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    first, second = (
        build(tmp_path / name / "zoo", seed=seed, rows=40 + seed)
        for seed, name in enumerate(("first", "second"))
    )
    shutil.copytree(
        second.path / "generations" / second.generation,
        first.path / "generations" / second.generation,
    )
    return Pair(first.path, {first.generation: first, second.generation: second})


def publish(index: Path, name: str) -> None:
    """Make it the published generation, in one step as the indexer does."""
    new = index / "CURRENT.new"
    new.write_text(f"{name}\n")
    new.replace(index / "CURRENT")


def served(stub: ActivationServiceStub) -> str:
    return stub.GetIndex(pb.GetIndexRequest(), timeout=PATIENCE).index.generation


def publish_and_wait(index: Path, name: str, stub: ActivationServiceStub) -> None:
    publish(index, name)
    wait_for(lambda: served(stub) == name)


def test_an_old_generation_is_gone_without_a_collection(pair: Pair) -> None:
    """Those of a server leave out what it had at its start."""
    publish(pair.path, pair.names[0])
    served = Served(index_paths([pair.path]))
    name = pair.path.name
    for question, request in (
        ("TopImages", pb.TopImagesRequest(layer=LAYER, channel=0, k=5)),
        ("TopPatches", pb.TopPatchesRequest(layer=LAYER, channel=0, k=3)),
        ("SimilarImages", pb.SimilarImagesRequest(layer=LAYER, row=1, k=3)),
    ):
        answer, _ = QUESTIONS[question].bind(served.current, request)
        assert answer().ByteSize() > 0
        del answer
    old = weakref.ref(served.current[name].generation)
    settle()
    try:
        publish(pair.path, pair.names[1])
        assert served.renew() == [name]
        assert old() is None
    finally:
        gc.unfreeze()


class Thing:
    """That an answer refers to."""


def test_a_call_that_fails_keeps_nothing() -> None:
    """Not even if what there was when it was under way is left out of collections."""
    things = [Thing()]
    seen = weakref.ref(things[0])

    async def run() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def fail(request: bytes, context: Any) -> bytes:
            thing = things.pop()
            begun.set()
            await go_on.wait()
            raise InvalidArgumentError(f"{thing} cannot be.")

        server = grpc.aio.server(interceptors=[StatusInterceptor()])
        method = grpc.unary_unary_rpc_method_handler(fail, bytes, bytes)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("some.Service", {"Fail": method})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask: Any = channel.unary_unary("/some.Service/Fail")
            call = ask(b"", timeout=PATIENCE)
            await begun.wait()
            settle()
            go_on.set()
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        await server.stop(None)

    try:
        asyncio.run(run())
        assert seen() is None
    finally:
        gc.unfreeze()


def wait_for(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.01)


def check_top(truths: dict[str, Synthetic], reply: pb.TopImagesResponse, channel: int) -> None:
    """Everything in an answer is of the generation that it names."""
    truth = truths[reply.generation]
    ranking = truth.ranking(LAYER, "mean", channel)[: len(reply.images)]
    assert [(image.row, image.score) for image in reply.images] == ranking
    for image in reply.images:
        assert image.key == truth.records[image.row].key


class Asker(threading.Thread):
    """Asks without pause, and counts answers by their generation."""

    def __init__(self, address: str, truths: dict[str, Synthetic], number: int) -> None:
        super().__init__()
        self._address = address
        self._truths = truths
        self._chance = np.random.default_rng(number)
        self._over = threading.Event()
        self.seen: Counter[str] = Counter()
        self.failed: list[BaseException] = []

    def run(self) -> None:
        # A connection of its own, which any of the workers may have.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._address, options=options) as channel:
            stub = ActivationServiceStub(channel)
            while not self._over.is_set() and not self.failed:
                try:
                    self._ask(stub)
                except BaseException as error:
                    self.failed.append(error)

    def _ask(self, stub: ActivationServiceStub) -> None:
        channel = int(self._chance.integers(11))
        reply = stub.TopImages(
            pb.TopImagesRequest(layer=LAYER, channel=channel, k=30), timeout=PATIENCE
        )
        check_top(self._truths, reply, channel)
        self.seen[reply.generation] += 1
        sweep = list(stub.TopImagesOfChannels(pb.TopImagesOfChannelsRequest(layer=LAYER, k=5)))
        assert len({part.generation for part in sweep}) == 1
        for number, part in enumerate(sweep):
            check_top(self._truths, part, number)

    def end(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.parametrize("workers", [1, 2])
def test_generations_are_exchanged_under_load(pair: Pair, serve: Serve, workers: int) -> None:
    server = serve(pair.path, options=(*QUICK, "--workers", str(workers)))
    askers = [Asker(server.address, pair.truths, number) for number in range(2)]
    for asker in askers:
        asker.start()
    try:
        for number in range(1, SWAPS + 1):
            name = pair.names[number % 2]
            before = [asker.seen[name] for asker in askers]
            publish(pair.path, name)

            def answered(name: str = name, before: list[int] = before) -> bool:
                return any(asker.failed for asker in askers) or all(
                    asker.seen[name] > count for asker, count in zip(askers, before, strict=True)
                )

            wait_for(answered)
    finally:
        for asker in askers:
            asker.end()
    assert [asker.failed for asker in askers] == [[], []]
    assert server.terminate() == 0
    # A worker that nobody asks may have passed over some.
    assert SWAPS <= server.errors.read_text().count("is served, after") <= SWAPS * workers


def test_an_old_generation_may_be_pruned_once_nobody_reads_it(pair: Pair, serve: Serve) -> None:
    first, second = sorted(pair.names)
    publish(pair.path, first)
    server = serve(pair.path, options=QUICK)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        # What it has loaded is loaded of the next one too, and let go of with it.
        stub.SimilarImages(pb.SimilarImagesRequest(layer=LAYER, row=1), timeout=PATIENCE)
        publish(pair.path, second)
        wait_for(lambda: served(stub) == second)
        wait_for(lambda: prune(pair.path).removed == (first,))
        near = stub.SimilarImages(pb.SimilarImagesRequest(layer=LAYER, row=1), timeout=PATIENCE)
        assert near.generation == second


def cut_a_file(folder: Path) -> None:
    path = folder / "faiss" / f"{LAYER}.faiss"
    path.write_bytes(path.read_bytes()[:-1])


def lose_a_file(folder: Path) -> None:
    next((folder / "arrays.zarr" / "layers" / LAYER / "scores_mean" / "c").rglob("*/*")).unlink()


def spoil_what_is_loaded(folder: Path) -> None:
    path = folder / "faiss" / f"{LAYER}.faiss"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def spoil_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))


def lose_all(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "damage", [cut_a_file, lose_a_file, spoil_what_is_loaded, spoil_the_manifest, lose_all]
)
def test_a_broken_generation_is_refused_and_the_old_one_stays(
    pair: Pair, serve: Serve, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    old, new = pair.names
    folder = pair.path / "generations" / new
    whole = shutil.copytree(folder, tmp_path / "whole")
    damage(folder)
    server = serve(pair.path, options=QUICK)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        near = pb.SimilarImagesRequest(layer=LAYER, row=1)
        stub.SimilarImages(near, timeout=PATIENCE)
        publish(pair.path, new)
        wait_for(lambda: "cannot be served" in server.errors.read_text())
        for _ in range(5):
            assert served(stub) == old
            assert stub.SimilarImages(near, timeout=PATIENCE).generation == old
            time.sleep(0.05)
        # Said once, however often it is looked at.
        assert server.errors.read_text().count("cannot be served") == 1
        assert "Traceback" not in server.errors.read_text()
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)
        wait_for(lambda: served(stub) == new)
        assert stub.SimilarImages(near, timeout=PATIENCE).generation == new


def test_a_pointer_that_is_none_changes_nothing(pair: Pair, serve: Serve) -> None:
    server = serve(pair.path, options=QUICK)
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        (pair.path / "CURRENT").write_text("nonsense")
        wait_for(lambda: "cannot be served" in server.errors.read_text())
        assert served(stub) == pair.names[0]
        publish(pair.path, pair.names[1])
        wait_for(lambda: served(stub) == pair.names[1])


def test_without_following_the_first_generation_stays(pair: Pair, serve: Serve) -> None:
    server, follower = (serve(pair.path, options=("--follow", each)) for each in ("0", "0.05"))
    with (
        grpc.insecure_channel(server.address) as channel,
        grpc.insecure_channel(follower.address) as other,
    ):
        stub, following = ActivationServiceStub(channel), ActivationServiceStub(other)
        for name in reversed(pair.names):
            publish_and_wait(pair.path, name, following)
            assert served(stub) == pair.names[0]
            assert "is served, after" not in server.errors.read_text()


def test_a_generation_without_all_of_its_files_is_no_start(pair: Pair) -> None:
    cut_a_file(pair.path / "generations" / pair.names[0])
    assert f"{LAYER}.faiss" in check_start_error([pair.path, "--listen", "127.0.0.1:0"], 4)


def test_what_failed_waits_and_another_does_not(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = pair.names
    folder = pair.path / "generations" / new
    whole = shutil.copytree(folder, tmp_path / "whole")
    third = build(tmp_path / "third" / "zoo", seed=2, rows=42)
    shutil.copytree(
        third.path / "generations" / third.generation,
        pair.path / "generations" / third.generation,
    )
    indexes = Served(index_paths([pair.path]))
    cut_a_file(folder)
    publish(pair.path, new)
    assert indexes.renew(3600.0) == []
    shutil.rmtree(folder)
    whole.rename(folder)
    assert indexes.renew(3600.0) == []
    # Whatever was wrong with the one that is served again is over.
    publish(pair.path, old)
    assert indexes.renew(3600.0) == []
    cut_a_file(folder)
    publish(pair.path, new)
    assert indexes.renew(3600.0) == []
    assert caplog.text.count("cannot be served") == 2
    publish(pair.path, third.generation)
    assert indexes.renew(3600.0) == ["zoo"]
    assert indexes.current["zoo"].generation.name == third.generation


def test_a_bug_of_ours_does_not_end_the_following(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def load(generations: object) -> dict[str, Any]:
        asked.append(generations)
        if len(asked) in (2, 3):
            raise ZeroDivisionError("as it happens")
        return {}

    indexes = Served(index_paths([pair.path]), load)
    publish(pair.path, pair.names[1])
    with caplog.at_level(logging.INFO, "vitscope.server"):
        assert [indexes.renew() for _ in range(3)] == [[], [], ["zoo"]]
    assert caplog.text.count("cannot be served: as it happens") == 1
    assert caplog.text.count("Traceback") == 1


def test_what_was_loaded_is_loaded_beforehand(pair: Pair) -> None:
    old = open_generation(pair.path)
    old.neighbours(LAYER)
    old.statistics(LAYER, "max")
    old.hubs(LAYER, "mean")
    publish(pair.path, pair.names[1])
    new = open_generation(pair.path)
    new.warm(old)
    assert list(new._neighbours) == list(old._neighbours)
    assert list(new._statistics) == [(LAYER, "max")]
    assert list(new._hubs) == [(LAYER, "mean")]
