"""Similar patches and directions by client, command and bare stub: the same answers.

What the stub answers is held against brute force in tests/server/test_similar.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from started import ServerProcess
from synthetic import build

from vitscope.client import (
    Client,
    ImageFilter,
    NamedDirections,
    NotFoundError,
    UsageError,
    sheets,
)
from vitscope.client.cli import main
from vitscope.client.fields import DIRECTION_MEASURES
from vitscope.store.approximate import SIZES
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Captured = pytest.CaptureFixture[str]
LAYER = "blocks.0.mlp"
PROBE = np.array([0.5, 0.0, 0.0, -1.0, 2.0])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, serve: Callable[..., ServerProcess]) -> str:
    """Of a server over an index with all of a layer and with directions, and over one whose
    searches are approximate."""
    folder = tmp_path_factory.mktemp("similar")
    zoo = build(folder / "zoo", complete=True).path
    directions = zoo / "directions" / LAYER
    directions.mkdir(parents=True)
    np.save(directions / "probe.npy", PROBE)
    np.save(directions / "sae.npy", np.stack([PROBE, -PROBE]))
    sizes = replace(SIZES, flat_below=40, lists=8)
    listed = build(folder / "listed", complete=True, sizes=sizes).path
    return serve(zoo, listed).address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[ActivationServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield ActivationServiceStub(channel)


@pytest.fixture(autouse=True)
def ask_it(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCOPE_SERVER", address)


def said(line: str, capsys: Captured) -> tuple[str, str]:
    assert main(line.split()) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def json_of(line: str, capsys: Captured) -> Any:
    out, err = said(f"{line} --json", capsys)
    assert err == ""
    return json.loads(out)


@pytest.mark.parametrize("other_images", [False, True])
@pytest.mark.parametrize("index", ["zoo", "listed"])
def test_similar_patches(
    client: Client,
    stub: ActivationServiceStub,
    index: str,
    other_images: bool,
    capsys: Captured,
) -> None:
    reply = stub.SimilarPatches(
        pb.SimilarPatchesRequest(
            index=index,
            layer=LAYER,
            row=5,
            patch=pb.PatchPlace(y=1, x=0),
            k=7,
            other_images=other_images,
        )
    )
    near = client.similar_patches(
        LAYER, np.int64(5), (1, 0), k=7, other_images=other_images, index=index
    )
    assert (near.layer, near.row, near.patch) == (LAYER, 5, (1, 0))
    assert (near.generation, near.exact) == (reply.generation, reply.exact)
    assert near.exact == (index == "zoo")
    assert near.recall_at_10 == reply.recall_at_10
    assert (near.grid.cell_height, near.grid.cell_width) == (24, 40)
    expected = [(p.row, p.y, p.x, p.score, p.source.x0, p.source.y1) for p in reply.patches]
    found = [(p.row, p.y, p.x, p.score, p.source[0], p.source[3]) for p in near.patches if p.source]
    assert found == expected
    assert len(found) == 7
    line = f"similar-patches --index {index} --layer {LAYER} --row 5 --patch 1 0 -k 7"
    line += " --other-images" * other_images
    answer = json_of(line, capsys)
    assert [(p["row"], p["y"], p["x"], p["score"]) for p in answer["patches"]] == [
        one[:4] for one in expected
    ]
    assert (answer["patch"], answer["row"], answer["layer"]) == ([1, 0], 5, LAYER)
    assert (answer["exact"], answer["recall_at_10"]) == (near.exact, near.recall_at_10)
    out, err = said(line, capsys)
    assert len(out.splitlines()) == 8
    assert ("approximate" in err) == (index == "listed")
    assert said(f"{line} --exact", capsys)[1] == ""


def test_exact_answers_of_both_kinds(client: Client, capsys: Captured) -> None:
    exact = client.similar_patches(LAYER, 5, (0, 1), k=30, exact=True, index="listed")
    flat = client.similar_patches(LAYER, 5, (0, 1), k=30, index="zoo")
    assert (exact.exact, exact.recall_at_10, exact.patches) == (True, 1.0, flat.patches)
    images = client.similar_images(LAYER, 5, k=30, exact=True, index="listed")
    assert images.images == client.similar_images(LAYER, 5, k=30, index="zoo").images
    assert not client.similar_images(LAYER, 5, index="listed").exact
    line = f"similar-images --index listed --layer {LAYER} --row 5"
    assert "approximate" in said(line, capsys)[1]
    assert said(f"{line} --exact", capsys)[1] == ""


@pytest.mark.parametrize(
    ("direction", "options"),
    [
        ({0: 0.5, 3: -1.0, np.int32(4): 2.0}, "--weights 0=0.5,3=-1,4=2e0"),
        (PROBE, "--vector {file}"),
        ("probe", "--name probe"),
        ("sae/0", "--name sae/0"),
    ],
)
def test_the_same_direction_in_every_form(
    client: Client,
    stub: ActivationServiceStub,
    direction: Any,
    options: str,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    np.save(tmp_path / "file.npy", PROBE.astype(np.float16))
    options = options.format(file=tmp_path / "file.npy")
    vector = pb.Direction(vector=PROBE.astype("<f4").tobytes())
    for measure in ("projection", "cosine"):
        reply = stub.TopImagesAlongDirection(
            pb.TopImagesAlongDirectionRequest(
                index="zoo",
                layer=LAYER,
                direction=vector,
                measure=DIRECTION_MEASURES[measure],
                k=9,
                filter=pb.ImageFilter(labels=["fox"]),
            )
        )
        where = ImageFilter(labels=["fox"])
        along = client.top_images_along(
            LAYER, direction, measure=measure, k=9, where=where, index="zoo"
        )
        assert (along.layer, along.measure, along.pooling) == (LAYER, measure, "mean")
        expected = [(image.row, image.key, image.score) for image in reply.images]
        assert [(image.row, image.key, image.score) for image in along.images] == expected
        assert len(expected) == 9
        assert along.candidates == reply.candidates == 18
        assert along.generation == reply.generation
        line = f"top-images-along --index zoo --layer {LAYER} {options} --label fox -k 9"
        line += f" --measure {measure}"
        answer = json_of(line, capsys)
        assert [(one["row"], one["key"], one["score"]) for one in answer["images"]] == expected
        assert (answer["measure"], answer["candidates"]) == (measure, 18)
        assert len(said(line, capsys)[0].splitlines()) == 10


def test_directions_are_listed(client: Client, capsys: Captured) -> None:
    found = client.directions(index="zoo")
    named = (NamedDirections(LAYER, "probe", 0), NamedDirections(LAYER, "sae", 2))
    assert found.directions == named
    assert client.directions(LAYER, index="zoo") == found
    assert client.directions("blocks.1.mlp", index="zoo").directions == ()
    head, *rows = said("directions --index zoo", capsys)[0].splitlines()
    assert [row.split() for row in rows] == [[LAYER, "probe", "-"], [LAYER, "sae", "2"]]
    assert head.split() == ["layer", "name", "directions"]
    assert json_of("directions --index zoo", capsys)["directions"][1]["count"] == 2
    out, _ = said(f"directions --index listed --layer {LAYER}", capsys)
    assert out == "No directions lie beside the index.\n"


def test_sheets(client: Client, tmp_path: Path, capsys: Captured) -> None:
    near = client.similar_patches(LAYER, 5, (1, 0), k=4, index="listed")
    section = sheets.similar_patches_section(client, "listed", near)
    assert [cell.mark for cell in section.cells] == [(1, 0), *((p.y, p.x) for p in near.patches)]
    assert section.cells[0].heading == "the patch asked about"
    assert all(cell.grid == near.grid for cell in section.cells)
    assert "of the true ten nearest" in section.note
    along = client.top_images_along(LAYER, "probe", k=3, index="zoo")
    section = sheets.along_section(client, "zoo", along, "probe")
    assert section.title == f"{LAYER} · along probe · top 3 by projection"
    assert section.note.endswith("mean pooling")
    for line in (
        f"similar-patches --index zoo --layer {LAYER} --row 5 --patch 0 0 -k 3",
        f"top-images-along --index zoo --layer {LAYER} --weights 1=1,2=-0.5 -k 3",
    ):
        target = tmp_path / "sheet.png"
        _, err = said(f"{line} --png {target}", capsys)
        assert err == f"Wrote {target}.\n"
        with Image.open(target) as sheet:
            assert min(sheet.size) > 300
        target.unlink()


def test_directions_that_cannot_be_meant(client: Client, tmp_path: Path, capsys: Captured) -> None:
    with pytest.raises(UsageError, match="has 2"):
        client.top_images_along(LAYER, np.ones((2, 5)), index="zoo")
    with pytest.raises(UsageError, match="has 0"):
        client.top_images_along(LAYER, np.float32(1), index="zoo")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="are numbers"):
        client.top_images_along(LAYER, np.array(["x"] * 5), index="zoo")
    with pytest.raises(UsageError, match="Measure 'angle' is not known"):
        client.top_images_along(LAYER, {1: 1.0}, measure="angle", index="zoo")
    with pytest.raises(UsageError, match="does not fit in 32 bits"):
        client.top_images_along(LAYER, {2**40: 1.0}, index="zoo")
    with pytest.raises(NotFoundError, match="no direction 'sae/2'"):
        client.top_images_along(LAYER, "sae/2", index="zoo")
    (tmp_path / "text.npy").write_text("no array")
    np.savez(tmp_path / "several.npz", a=PROBE)
    line = f"top-images-along --index zoo --layer {LAYER}"
    for options, code, word in (
        ("", 2, "--weights"),
        ("--weights 1", 2, "no weight of a channel"),
        ("--weights 1=x", 2, "no weight of a channel"),
        ("--weights 1=1,1=2", 2, "named twice"),
        ("--weights 1=1 --name probe", 2, "not allowed"),
        (f"--vector {tmp_path}/text.npy", 2, "not readable"),
        (f"--vector {tmp_path}/none.npy", 2, "not readable"),
        (f"--vector {tmp_path}/several.npz", 2, "several arrays"),
    ):
        assert main(f"{line} {options}".split()) == code, options
        captured = capsys.readouterr()
        assert captured.out == ""
        assert word in captured.err
