"""An index that is opened without a server gives the answers, and the refusals, of a server."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client.test_aio import DENSE, QUESTIONS, SPARSE, plain
from synthetic import Synthetic, build

from vitscope.client import (
    Client,
    DamagedIndexError,
    InvalidRequestError,
    LocalIndexError,
    NotFoundError,
    NotKeptError,
    UsageError,
    open_local,
)
from vitscope.client.cli import main


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, serve: Any) -> Iterator[tuple[Client, Client]]:
    """Clients of one and the same two indexes: of a server, and of the folders."""
    folder = tmp_path_factory.mktemp("local")
    one, two = (build(folder / name, complete=True) for name in ("one", "two"))
    directions = one.path / "directions" / DENSE
    directions.mkdir(parents=True)
    np.save(directions / "probe.npy", np.arange(5, dtype=np.float32))
    server = serve(one.path, two.path)
    with Client(server.address) as remote, open_local(one.path, two.path) as local:
        yield remote, local


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_has_the_same_answer(both: tuple[Client, Client], name: str) -> None:
    remote, local = (plain(QUESTIONS[name](client)) for client in both)
    assert local == remote
    assert len(str(local)) > 20


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda c: c.top_images(DENSE, 9, index="one"), NotFoundError),
        (lambda c: c.top_images(DENSE, 1), InvalidRequestError),
        (lambda c: c.index("three"), NotFoundError),
        (lambda c: c.similar_patches(SPARSE, 3, (0, 0), index="one"), NotKeptError),
        (lambda c: c.top_images(DENSE, 1, order="up"), UsageError),
        (lambda c: list(c.scores_stream(DENSE, [5], index="one")), NotFoundError),
        (lambda c: c.patch_maps([(DENSE, 1, 500)], index="one"), NotFoundError),
        (lambda c: c.images([500], index="one"), NotFoundError),
        (lambda c: c.compare_channels("one", "three", DENSE), NotFoundError),
        (lambda c: c.analyze_image(b"picture", index="one"), NotKeptError),
    ],
)
def test_every_refusal_is_the_same(both: tuple[Client, Client], ask: Any, kind: type) -> None:
    said = []
    for client in both:
        with pytest.raises(kind) as raised:
            ask(client)
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_it_keeps_to_the_generation_that_it_opened(synthetic_copy: Path, tmp_path: Path) -> None:
    other = build(tmp_path / "other" / "zoo", seed=1, rows=40)
    folder = synthetic_copy / "generations" / other.generation
    shutil.copytree(other.path / "generations" / other.generation, folder)
    with open_local(synthetic_copy) as first:
        before = first.index().generation
        (synthetic_copy / "CURRENT").write_text(f"{other.generation}\n")
        assert first.index().generation == before != other.generation
        with open_local(synthetic_copy) as second:
            assert second.index().generation == other.generation


def test_what_is_no_index(tmp_path: Path, synthetic: Synthetic) -> None:
    for paths, kind, word in (
        ([tmp_path / "none"], LocalIndexError, "is not a folder"),
        ([tmp_path], LocalIndexError, "is not an index"),
        ([synthetic.path, synthetic.path], LocalIndexError, "Two indexes are called 'zoo'"),
        ([], UsageError, "no index to open"),
    ):
        with pytest.raises(kind, match=word):
            open_local(*paths)


def test_a_client_that_is_closed_lets_its_generation_go(synthetic_copy: Path) -> None:
    def in_use() -> bool:
        [manifest] = synthetic_copy.glob("generations/*/manifest.json")
        with manifest.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    client = open_local(synthetic_copy)
    answer = client.top_images("blocks.0.mlp", 4, k=2)
    assert in_use()
    client.close()
    assert not in_use()
    with pytest.raises(UsageError, match=r"^This client is closed; make another\.$"):
        client.index()
    # An answer looks again for its pictures, and keeps nothing.
    assert "<img" in answer._repr_html_()
    assert not in_use()


def test_damage_is_found(synthetic_copy: Path) -> None:
    with open_local(synthetic_copy) as client:
        for path in synthetic_copy.rglob("scores_mean/c/*/*"):
            path.write_bytes(b"")
        with pytest.raises(DamagedIndexError) as raised:
            client.top_images("blocks.0.mlp", 3, k=60)
        assert str(synthetic_copy) not in str(raised.value)


def test_the_command_reads_a_folder(
    synthetic: Synthetic, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ["top-images", "--layer", "blocks.0.mlp", "--channel", "4", "-k", "3"]
    assert main([*line, "--json", "--local", str(synthetic.path)]) == 0
    rows = [image["row"] for image in json.loads(capsys.readouterr().out)["images"]]
    assert rows == [row for row, _ in synthetic.ranking("blocks.0.mlp", "mean", 4)[:3]]
    other = shutil.copytree(synthetic.path, tmp_path / "other")
    pair = ["--local", str(synthetic.path), "--local", str(other)]
    assert main(["compare", "other", "--index", "zoo", "--layer", "blocks.0.mlp", *pair]) == 0
    capsys.readouterr()
    assert main([*line, "--local", str(tmp_path)]) == 4
    assert capsys.readouterr().err.endswith("`vitscope index` makes one.\n")


_WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from vitscope.client import VitscopeError, open_local
try:
    with open_local(sys.argv[1]) as client:
        print(len(client.top_images("blocks.0.mlp", 4, k=3, maps=True).images))
        print(len(client.channel_statistics("blocks.0.mlp").channels))
        print(len(client.similar_images("blocks.0.mlp", 3, k=2).images))
except VitscopeError as error:
    print(type(error).__name__, error)
"""


def without(index: Path, *missing: str) -> list[str]:
    """What a process prints that lacks some libraries."""
    command = [sys.executable, "-c", _WITHOUT, str(index), *missing]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.stderr == ""
    return run.stdout.splitlines()


def test_libraries_of_the_server_and_the_indexer_are_not_needed(synthetic: Synthetic) -> None:
    others = ("zarr", "torch", "timm", "numba", "pyarrow", "grpc_health", "grpc_reflection")
    assert without(synthetic.path, *others, "prometheus_client") == ["3", "11", "2"]


def test_faiss_is_needed_where_likeness_is_asked_for(synthetic: Synthetic) -> None:
    assert without(synthetic.path, "faiss") == [
        "3",
        "11",
        "UsageError This question needs faiss; install it with `pip install 'vitscope[faiss-cpu]'` "
        "(or vitscope[faiss-gpu] where there is a CUDA device).",
    ]


@pytest.mark.parametrize("library", ["tensorstore", "blake3", "google_crc32c"])
def test_what_opening_needs_is_named(synthetic: Synthetic, library: str) -> None:
    assert without(synthetic.path, library) == [
        f"UsageError Opening an index needs {library}; install it with "
        "`pip install 'vitscope[store]'`."
    ]


@pytest.mark.parametrize(
    ("more", "flags"),
    [
        (["--server", "127.0.0.1:1"], "--server"),
        (["--tls"], "--tls"),
        (["--tls-ca", "ca.pem", "--tls-name", "gpu-7"], "--tls-ca and --tls-name"),
        (["--tls-cert", "a.crt", "--tls-key", "a.key"], "--tls-cert and --tls-key"),
        (["--token-file", "token"], "--token-file"),
        (["--timeout", "3"], "--timeout"),
    ],
)
def test_the_command_is_told_either_a_folder_or_a_server(
    synthetic: Synthetic, capsys: pytest.CaptureFixture[str], more: list[str], flags: str
) -> None:
    assert main(["layers", "--local", str(synthetic.path), *more]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (f"vitscope: --local asks no server; leave out {flags}, or --local.\n")


def test_what_the_environment_says_of_servers_is_no_objection(
    synthetic: Synthetic, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSCOPE_SERVER", "127.0.0.1:1")
    monkeypatch.setenv("VITSCOPE_TOKEN", "no token")
    assert main(["layers", "--local", str(synthetic.path)]) == 0
    assert "blocks.0.mlp" in capsys.readouterr().out
