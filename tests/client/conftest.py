"""Real servers that the client is tested against, and a folder where nothing may be left."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import synthetic as synthetic_index
from client.answers import QUESTIONS, build_pair
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.client import AnalyzedImage, Client, Neighbours, open_local
from vitscope.client.answer import Answer
from vitscope.store.rows import RowRecord

if TYPE_CHECKING:
    from lives import LiveIndex


@pytest.fixture(scope="session", params=["server", "folder"])
def client(
    request: pytest.FixtureRequest, synthetic_server: str, synthetic: Synthetic
) -> Iterator[Client]:
    """A client of the synthetic index alone: of its server, and of its folder without one."""
    there = request.param == "server"
    with Client(synthetic_server) if there else open_local(synthetic.path) as opened:
        yield opened


@pytest.fixture(scope="session")
def pond(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """A second index, of fewer images and without thumbnails."""
    return build(tmp_path_factory.mktemp("second") / "пруд", seed=1, rows=40, thumbnails=False)


@pytest.fixture(scope="session")
def two_indexes(synthetic: Synthetic, pond: Synthetic, serve: Callable[..., ServerProcess]) -> str:
    """Address of a server that holds both indexes."""
    return serve(synthetic.path, pond.path).address


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory, serve: Callable[..., ServerProcess]) -> str:
    """Address of a server over an index whose names mean harm and whose thumbnails are no JPEGs."""
    make_record = synthetic_index._record

    def record(row: int, rows: int, picture: bytes) -> RowRecord:
        key = f"../../{row}\x1b]0;owned\x07\n.jpg"
        return replace(make_record(row, rows, picture), key=key, label="/etc/\x1b[2J")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_index, "_record", record)
        patch.setattr(synthetic_index, "_picture", lambda row: b"<html>")
        index = build(tmp_path_factory.mktemp("hostile") / "index", rows=5)
    return serve(index.path).address


@pytest.fixture
def ask_synthetic(synthetic_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands ask the server over the synthetic index unless told otherwise."""
    monkeypatch.setenv("VITSCOPE_SERVER", synthetic_server)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands of a test run."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def silent_address() -> str:
    """An address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="session")
def pair_server(
    tmp_path_factory: pytest.TempPathFactory, serve: Callable[..., ServerProcess]
) -> str:
    """Address of a server over the indexes 'one' and 'two' of the same pictures."""
    return serve(*build_pair(tmp_path_factory.mktemp("pair"))).address


@pytest.fixture(scope="session")
def answers(pair_server: str, live: LiveIndex, live_server: str) -> dict[type[Answer], Answer]:
    """One of every kind, by a client that is closed again."""
    with Client(pair_server) as opened:
        found = {kind: ask(opened) for kind, ask in QUESTIONS.items()}
    picture = live.files[live.good_rows[3]]
    with Client(live_server) as opened:
        own = opened.analyze_image(picture, channels=4, percentiles=True, include_maps=True)
    return {**found, AnalyzedImage: own, Neighbours: own.neighbours[0]}
