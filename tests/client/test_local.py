"""An index that is opened without a server gives the answers, and the refusals, of a server."""

from __future__ import annotations

import fcntl
import json
import shutil
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
    with pytest.raises(UsageError, match="This client is closed"):
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
