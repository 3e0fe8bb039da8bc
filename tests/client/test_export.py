"""Exports of the synthetic index, read back by Parquet's and Pillow's own readers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from client.truth import PLAIN, SHAPES, WHOLE, WIDE, bad_rows, best
from PIL import Image
from started import ServerProcess
from synthetic import Synthetic, build

from client import truth
from vitscope.client import Client, UsageError
from vitscope.client.cli import main
from vitscope.client.commands import _export, _export_tables
from vitscope.client.pictures import decode, mask, overlay

pytestmark = pytest.mark.usefixtures("ask_synthetic")

Captured = pytest.CaptureFixture[str]


def exported(line: str, out: str, capsys: Captured) -> None:
    assert main(["export", *line.split(), "--out", out]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"Wrote {out}.\n"


def table(line: str, capsys: Captured) -> tuple[dict[str, list[Any]], Any, dict[str, Any]]:
    """Columns, the file and what its metadata tells."""
    exported(line, "out.parquet", capsys)
    file = pq.ParquetFile("out.parquet")
    told = json.loads(file.schema_arrow.metadata[b"vitscope"])
    return file.read().to_pydict(), file, told


def refused(line: str, capsys: Captured) -> str:
    assert main(["export", *line.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vitscope: ")
    assert captured.err.count("\n") == 1
    return captured.err


# ---- tables


def test_the_row_list(
    synthetic: Synthetic,
    empty_folder: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_export_tables, "_NAMES_AT_ONCE", 32)
    columns, file, told = table("table images", capsys)
    assert file.num_row_groups == 3
    records = synthetic.records
    assert columns == {
        "row": list(range(70)),
        "key": [record.key for record in records],
        "label": [record.label for record in records],
        "valid": [record.valid for record in records],
        "reason": [record.reason or None for record in records],
        "width": [record.width for record in records],
        "height": [record.height for record in records],
    }
    assert told == {
        "index": "zoo",
        "generation": synthetic.generation,
        "model": "vit_synthetic.none",
        "weights_sha256": synthetic.manifest.model.weights_sha256,
    }
    assert [path.name for path in empty_folder.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("channels", ["", "--channel 2,0,2", "--channel all"])
@pytest.mark.parametrize(
    ("layer", "pooling"), [(name, pooling) for name in SHAPES for pooling in SHAPES[name].poolings]
)
def test_scores_to_the_bit(
    synthetic: Synthetic,
    empty_folder: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    layer: str,
    pooling: str,
    channels: str,
) -> None:
    """In several calls and row groups, as those of a large index are."""
    wanted = [2, 0] if "," in channels else list(range(SHAPES[layer].channels))
    monkeypatch.setattr(_export_tables, "_CALL_BYTES", 2 * 70 * 2)
    monkeypatch.setattr(_export_tables, "_GROUP_BYTES", 2 * len(wanted) * 30)
    line = f"scores --layer {layer} --pooling {pooling} {channels}"
    columns, file, told = table(line, capsys)
    assert file.num_row_groups == 3
    assert list(columns) == ["row", "key", "label", *(f"c{channel}" for channel in wanted)]
    assert columns["row"] == list(range(70))
    assert columns["key"] == [record.key for record in synthetic.records]
    assert columns["label"] == [record.label for record in synthetic.records]
    expected = truth.scores(synthetic, layer, pooling) + np.float16(0)
    expected[bad_rows(synthetic)] = np.nan
    whole = file.read()
    for channel in wanted:
        column = whole.column(f"c{channel}")
        assert str(column.type) == "halffloat"
        assert column.to_numpy().astype(np.float16).tobytes() == expected[:, channel].tobytes()
    assert (told["layer"], told["pooling"]) == (layer, pooling)
    assert told["generation"] == synthetic.generation


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ("", {}),
        ("-k 5 --bottom", {"k": 5, "order": "bottom"}),
        ("--distinct -k 7", {"distinct": True, "k": 7}),
        ("--band 0.25:0.5 --pooling max", {"band": (0.25, 0.5), "pooling": "max"}),
    ],
)
def test_top_images_of_a_layer(
    client: Client,
    empty_folder: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    more: dict[str, Any],
) -> None:
    monkeypatch.setattr(_export, "CHANNELS_AT_ONCE", 4)
    columns, _, told = table(f"table top-images --layer {WIDE} {options}", capsys)
    expected: dict[str, list[Any]] = {name: [] for name in columns}
    for top in client.top_images_of_channels(WIDE, **more):
        for rank, image in enumerate(top.images, 1):
            values = [top.channel, rank, image.row, image.key, image.label, image.score]
            if image.distinctness:
                values += [image.distinctness.score, image.distinctness.hubs]
            for name, value in zip(columns, values, strict=True):
                expected[name].append(value)
    assert columns == expected
    assert told["order"] == more.get("order", "top")
    assert told["k"] == more.get("k")


def test_top_images_by_brute_force(
    synthetic: Synthetic, empty_folder: Path, capsys: Captured
) -> None:
    columns, _, _ = table(f"table top-images --layer {PLAIN} --channel 5,1 -k 65", capsys)
    got = zip(*(columns[name] for name in ("channel", "rank", "row", "score")), strict=True)
    assert list(got) == [
        (channel, rank, row, score)
        for channel in (5, 1)
        for rank, (row, score) in enumerate(best(synthetic, PLAIN, channel, "mean"), 1)
    ]


def test_no_image_passes(empty_folder: Path, capsys: Captured) -> None:
    columns, _, _ = table(f"table top-images --layer {PLAIN} --with-box", capsys)
    assert set(map(len, columns.values())) == {0}


def test_statistics(client: Client, empty_folder: Path, capsys: Captured) -> None:
    columns, _, told = table(f"table statistics --layer {PLAIN} --pooling max", capsys)
    found = client.channel_statistics(PLAIN, pooling="max")
    for name in ("mean", "variance", "active"):
        assert columns.pop(name) == getattr(found, name).tolist()
    assert columns.pop("channel") == list(range(24))
    levels = ["q0", "q0.01", "q0.05", "q0.25", "q0.5", "q0.75", "q0.95", "q0.99", "q1"]
    assert list(columns) == levels
    assert np.array(list(columns.values())).T.tolist() == found.quantiles.tolist()
    assert told["pooling"] == "max"


def test_box_scores(
    tmp_path: Path, serve: Callable[..., ServerProcess], empty_folder: Path, capsys: Captured
) -> None:
    index = build(tmp_path / "boxed", complete=True)
    address = serve(index.path).address
    line = f"table box-scores --layer blocks.0.mlp --of tail --server {address}"
    columns, _, told = table(line, capsys)
    with Client(address) as client:
        found = client.box_scores("blocks.0.mlp", box_labels=["tail"])
    assert found.inside_images is not None
    for name in ("images", "inside_images", "inside", "area", "auc", "contrast"):
        assert np.array_equal(
            np.array(columns[name], float), getattr(found, name).astype(float), equal_nan=True
        )
    assert columns["channel"] == list(range(5))
    assert (told["box_labels"], told["filter"]) == (["tail"], None)


REFUSED = {
    "scores --layer x --out a.parquet": "no layer 'x'",
    f"scores --layer {WIDE} --channel 11 --out a.parquet": "it has channels 0 to 10",
    f"scores --layer {PLAIN} --pooling cls --out a.parquet": "it has mean and max",
    f"scores --layer {WIDE} --out a.csv": "must end in .parquet",
    f"scores --layer {WIDE} --out nowhere/a.parquet": "make nowhere first",
    f"table top-images --layer {WIDE} -k 0 --out a.parquet": "k is 0",
    f"table box-scores --layer {WIDE} --out a.parquet": "no labelled boxes",
    f"table statistics --layer {WIDE} --channel -1 --out a.parquet": "no channel -1",
    "table images --index none --out a.parquet": "this server holds: zoo",
    f"images --layer {WIDE} --channel 4,11 --out a": "it has channels 0 to 10",
    f"images --layer {WIDE} --channel 4 -k 0 --out a": "k is 0",
}


@pytest.mark.parametrize("line", REFUSED)
def test_refusals_leave_nothing(line: str, empty_folder: Path, capsys: Captured) -> None:
    assert REFUSED[line] in refused(line, capsys)
    assert list(empty_folder.iterdir()) == []


def test_a_refusal_leaves_the_old_table(empty_folder: Path, capsys: Captured) -> None:
    (empty_folder / "a.parquet").write_bytes(b"old")
    refused(f"table top-images --layer {WIDE} -k 0 --out a.parquet", capsys)
    assert (empty_folder / "a.parquet").read_bytes() == b"old"
    assert len(list(empty_folder.iterdir())) == 1


def test_an_index_that_is_published_anew_meanwhile(client: Client) -> None:
    index = client.index()
    _export.require_generation(index, index.generation)
    with pytest.raises(UsageError, match="published anew"):
        _export.require_generation(index, "000002-0123456789abcdef")


# ---- a folder of exemplars


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("layer", [WIDE, PLAIN, WHOLE])
def test_exemplars(
    client: Client, synthetic: Synthetic, empty_folder: Path, capsys: Captured, layer: str
) -> None:
    exported(f"images --layer {layer} --channel 2,1 -k 12", "out", capsys)
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "channel_00001",
        "channel_00002",
        "export.json",
    ]
    maps = truth.maps(synthetic, layer)
    for channel in (2, 1):
        folder = Path(f"out/channel_{channel:05d}")
        told = json.loads((folder / "exemplars.json").read_text())
        top = client.top_images(layer, channel, k=12, maps=True)
        assert top.maps is not None
        assert top.maps.grid is not None
        about = ("index", "generation", "model", "layer", "channel", "pooling", "order")
        assert tuple(told[name] for name in about) == (
            "zoo",
            synthetic.generation,
            "vit_synthetic.none",
            layer,
            channel,
            "mean",
            "top",
        )
        assert told["grid"]["cell_height"] == SHAPES[layer].cell[0]
        hottest = max(0.0, *(maps[row, ..., channel].max() for row in top.maps.rows.tolist()))
        assert told["overlay_scale"] == [0.0, hottest]
        expected = best(synthetic, layer, channel, "mean")[:12]
        kept = truth.kept_rows(synthetic, layer, channel)
        named = set()
        for rank, (image, (row, score)) in enumerate(zip(told["images"], expected, strict=True), 1):
            record = synthetic.records[row]
            assert (image["rank"], image["row"], image["score"]) == (rank, row, score)
            assert (image["key"], image["label"]) == (record.key, record.label)
            picture = (folder / image["picture"]).read_bytes()
            assert picture == synthetic.thumbnails[row]
            named.add(image["picture"])
            if row not in kept:
                assert image["mask"] is image["overlay"] is image["mask_scale"] is None
                continue
            values = maps[row, ..., channel]
            low, high = image["mask_scale"]
            assert (low, high) == (values.min(), values.max())
            pixels = decode(picture)
            grid = top.maps.grid
            with Image.open(folder / image["mask"]) as grey:
                assert grey.mode == "L"
                drawn = np.asarray(grey)
            assert np.array_equal(
                drawn, mask(values, *pixels.shape[:2], low=low, high=high, grid=grid)
            )
            with Image.open(folder / image["overlay"]) as laid:
                assert np.array_equal(
                    np.asarray(laid), overlay(pixels, values, top=hottest, grid=grid)
                )
            named |= {image["mask"], image["overlay"]}
        assert {path.name for path in folder.iterdir()} == named | {"exemplars.json"}


def test_a_mask_is_the_map_on_its_scale() -> None:
    values = np.array([[-2.0, 0.0], [1.0, 3.0]], np.float16)
    drawn = mask(values, 2, 2, low=-2.0, high=3.0)
    assert drawn.tolist() == [[0, 102], [153, 255]]
    assert mask(values, 8, 8, low=-2.0, high=3.0).shape == (8, 8)
    corners = mask(values, 8, 8, low=-2.0, high=3.0)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == [0, 102, 153, 255]
    assert not mask(values, 4, 4, low=1.0, high=1.0).any()
    odd = np.array([[np.nan, np.inf, -np.inf, 3.0]], np.float16)
    assert mask(odd, 1, 4, low=1.0, high=3.0).tolist() == [[0, 255, 0, 255]]


def test_an_export_goes_on_where_it_was_left(empty_folder: Path, capsys: Captured) -> None:
    line = f"images --layer {PLAIN} --channel 3,0,7 -k 4 --pooling max"
    exported(line, "out", capsys)
    whole = files_of(Path("out"))
    # As it was when one channel was done and another begun.
    (Path("out/channel_00000") / "exemplars.json").unlink()
    for path in Path("out/channel_00007").iterdir():
        path.unlink()
    kept = Path("out/channel_00003/exemplars.json").stat()
    exported(line, "out", capsys)
    assert files_of(Path("out")) == whole
    assert Path("out/channel_00003/exemplars.json").stat().st_mtime_ns == kept.st_mtime_ns


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ("--channel 3 -k 4", "channels"),
        ("--channel 3,0 -k 5", "k"),
        ("--channel 3,0 -k 4 --pooling max", "pooling"),
        ("--channel 3,0 -k 4 --bottom", "order"),
        ("--channel 3,0 -k 4 --label fox", "filter"),
    ],
)
def test_a_folder_of_another_export(
    empty_folder: Path, capsys: Captured, changed: str, name: str
) -> None:
    exported(f"images --layer {PLAIN} --channel 3,0 -k 4", "out", capsys)
    before = files_of(Path("out"))
    error = refused(f"images --layer {PLAIN} {changed} --out out", capsys)
    assert f"its {name} differs" in error
    assert files_of(Path("out")) == before


def test_a_folder_whose_first_write_was_killed(empty_folder: Path, capsys: Captured) -> None:
    Path("out").mkdir()
    (Path("out") / ".vitscope.4711.partial").write_bytes(b"half")
    exported(f"images --layer {PLAIN} --channel 3 -k 2", "out", capsys)
    assert (Path("out") / "channel_00003" / "exemplars.json").is_file()


@pytest.mark.parametrize("note", [b"", b"[]", b"\xff", b"{}"])
def test_a_folder_of_something_else(empty_folder: Path, capsys: Captured, note: bytes) -> None:
    line = f"images --layer {PLAIN} --channel 3 --out out"
    Path("out").mkdir()
    (Path("out") / "mine.txt").write_text("mine")
    assert "is not empty" in refused(line, capsys)
    (Path("out") / "export.json").write_bytes(note)
    assert "holds another export" in refused(line, capsys)
    Path("file").write_text("")
    assert "is not a folder" in refused(line.replace("out out", "out file"), capsys)
    assert sorted(path.name for path in Path("out").iterdir()) == ["export.json", "mine.txt"]


def test_exemplars_without_thumbnails(
    pond: Synthetic, two_indexes: str, empty_folder: Path, capsys: Captured
) -> None:
    line = f"images --layer {WIDE} --channel 4 -k 3 --server {two_indexes} --index {pond.name}"
    exported(line, "out", capsys)
    told = json.loads(Path("out/channel_00004/exemplars.json").read_text())
    for image in told["images"]:
        assert image["picture"] is image["overlay"] is None
        with Image.open(io.BytesIO((Path("out/channel_00004") / image["mask"]).read_bytes())) as m:
            assert m.size == (80, 48)


def test_names_from_the_index_are_no_paths(
    hostile: str, empty_folder: Path, capsys: Captured
) -> None:
    """Its thumbnails are no pictures: nothing is drawn, and nothing written outside."""
    line = f"export images --layer {WIDE} --channel 4 --server {hostile} --out out"
    assert main(line.split()) == 5
    assert "does not decode as JPEG" in capsys.readouterr().err
    assert [path.name for path in empty_folder.iterdir()] == ["out"]
    exported(f"table images --server {hostile}", "rows.parquet", capsys)
    keys = pq.read_table("rows.parquet").column("key").to_pylist()
    assert keys[1] == "../../1\x1b]0;owned\x07\n.jpg"
