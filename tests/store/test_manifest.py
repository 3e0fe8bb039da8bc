"""The manifest: a faithful round trip, and refusal of everything that is not one."""

from __future__ import annotations

import json
from typing import Any

import make_golden
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import Synthetic

from vitscope.store.errors import DamagedIndexError, UnsupportedFormatError
from vitscope.store.manifest import (
    POOLINGS,
    FileRecord,
    LayerRecord,
    Manifest,
    ModelRecord,
    TokenLayout,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PATHS = NAMES.filter(lambda name: name not in ("", ".", "..") and not {"/", "\0"} & {*name})
COUNTS = st.integers(0, 2**31 - 1)
SIZES = st.integers(1, 2**31 - 1)
CELLS = st.floats(0, exclude_min=True, allow_infinity=False)
CORNERS = st.floats(allow_nan=False, allow_infinity=False)
RECALLS = st.floats(0, 1)
LAYERS = st.builds(
    LayerRecord,
    name=PATHS,
    depth=COUNTS,
    channels=COUNTS,
    tokens=st.builds(
        TokenLayout,
        prefix=st.lists(st.sampled_from(["cls", "dist", "reg"])).map(tuple),
        height=COUNTS,
        width=COUNTS,
        cell_height=CELLS,
        cell_width=CELLS,
        top=CORNERS,
        left=CORNERS,
    ),
    poolings=st.lists(st.sampled_from(POOLINGS[1:]), unique=True).map(lambda some: ("mean", *some)),
    top_k=COUNTS,
    patch_search=st.booleans(),
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    layers = draw(st.lists(LAYERS, min_size=1, max_size=3, unique_by=lambda layer: layer.name))
    searched = [layer.name for layer in layers if layer.patch_search]
    of_patches = st.fixed_dictionaries(dict.fromkeys(searched, RECALLS))
    rows = draw(COUNTS)
    return Manifest(
        model=draw(MODELS),
        layers=tuple(layers),
        rows=rows,
        valid_rows=draw(st.integers(0, rows)),
        rows_sha256=draw(NAMES),
        batch_size=draw(SIZES),
        unit_rows=draw(SIZES),
        saturated=draw(st.integers(0, 2**63 - 1)),
        threads=draw(COUNTS),
        thumbnail_size=draw(COUNTS),
        recall_at_10={layer.name: draw(RECALLS) for layer in layers},
        patch_recall_at_10=draw(of_patches),
        patch_recall_at_10_elsewhere=draw(of_patches),
        written_by=draw(NAMES),
        files=draw(st.dictionaries(PATHS.map("arrays.zarr/{}".format), FILES, max_size=3)),
    )


FILES = st.builds(FileRecord, bytes=st.integers(0, 2**63 - 1), blake3=NAMES)
MODELS = st.builds(
    ModelRecord,
    name=NAMES,
    weights_source=NAMES,
    weights_sha256=NAMES,
    input_size=st.tuples(SIZES, SIZES),
    dtype=NAMES,
    transform=st.lists(NAMES, max_size=3).map(tuple),
    decoder=NAMES,
    exif=NAMES,
)
MANIFESTS = manifests()


@given(MANIFESTS)
def test_round_trip(manifest: Manifest) -> None:
    data = manifest.to_json()
    again = Manifest.from_json(data)
    assert again == manifest
    assert again.to_json() == data


def test_written_form_is_plain_json_with_format_and_version(synthetic: Synthetic) -> None:
    body = json.loads((synthetic.folder / "manifest.json").read_bytes())
    assert (body["format"], body["format_version"]) == ("vitscope-index", 3)
    assert body["layers"][0]["tokens"] == {
        "prefix": ["cls", "reg", "reg"],
        "height": 3,
        "width": 5,
        "cell_height": 16.0,
        "cell_width": 16.0,
        "top": 0.0,
        "left": 0.0,
    }


def test_token_layout_counts_tokens_and_knows_its_poolings() -> None:
    with_class = TokenLayout.even(("reg", "cls"), 3, 5, (30, 50))
    assert (with_class.tokens, with_class.poolings) == (17, ("mean", "max", "cls"))
    # One prefix token that is no class token, as in timm's reg1 models.
    without = TokenLayout.even(("reg",), 2, 2, (8, 8))
    assert (without.tokens, without.poolings) == (5, ("mean", "max"))


@pytest.mark.parametrize("format_", ["zarr", None, 7, ["vitscope-index"]])
def test_another_format_is_refused(synthetic: Synthetic, format_: Any) -> None:
    body = json.loads(synthetic.manifest.to_json()) | {"format": format_}
    with pytest.raises(UnsupportedFormatError, match="this vitscope reads 'vitscope-index'"):
        Manifest.from_json(json.dumps(body).encode())


@pytest.mark.parametrize("version", [0, 4, "1", None, True, 2.0])
def test_another_version_is_refused(synthetic: Synthetic, version: Any) -> None:
    body = json.loads(synthetic.manifest.to_json()) | {"format_version": version}
    with pytest.raises(UnsupportedFormatError, match="version"):
        Manifest.from_json(json.dumps(body).encode())


def test_a_later_version_is_refused_even_where_its_fields_are_unknown() -> None:
    body = {"format": "vitscope-index", "format_version": 4, "something": "new"}
    with pytest.raises(
        UnsupportedFormatError,
        match=r"version 4; .* versions 1, 2 and 3",
    ):
        Manifest.from_json(json.dumps(body).encode())


def test_version_1_knew_only_patches_that_cover_the_input_evenly() -> None:
    [path] = (make_golden.DATA / "golden-v1" / "index" / "generations").glob("*/manifest.json")
    body = json.loads(path.read_bytes())
    assert body["format_version"] == 1
    body["model"]["input_size"] = [30, 56]
    body["layers"][0]["tokens"] = {"prefix": ["cls"], "height": 3, "width": 7}
    tokens = Manifest.from_json(json.dumps(body).encode()).layers[0].tokens
    assert tokens == TokenLayout(("cls",), 3, 7, 10.0, 8.0, 0.0, 0.0)
    for field, value in [("height", 0), ("width", 0), ("top", 0.0)]:
        broken = json.loads(json.dumps(body))
        broken["layers"][0]["tokens"][field] = value
        with pytest.raises(DamagedIndexError):
            Manifest.from_json(json.dumps(broken).encode())
    body["model"]["input_size"] = [30]
    with pytest.raises(DamagedIndexError):
        Manifest.from_json(json.dumps(body).encode())


def test_versions_before_3_had_no_search_among_patches() -> None:
    for version in (1, 2):
        folder = make_golden.DATA / f"golden-v{version}" / "index" / "generations"
        [path] = folder.glob("*/manifest.json")
        manifest = Manifest.from_json(path.read_bytes())
        assert manifest.patch_recall_at_10 == manifest.patch_recall_at_10_elsewhere == {}
        assert [layer.patch_search for layer in manifest.layers] == [False, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -16.0, 10**400, "16", None])
def test_patches_without_a_place_are_damage(synthetic: Synthetic, value: Any) -> None:
    for field in ("cell_height", "cell_width", "top", "left"):
        if field in ("top", "left") and value in (0.0, -16.0):
            continue
        body = json.loads(synthetic.manifest.to_json())
        body["layers"][1]["tokens"][field] = value
        with pytest.raises(DamagedIndexError):
            Manifest.from_json(json.dumps(body).encode())


@given(draw=st.data())
def test_a_cut_manifest_is_damaged(draw: st.DataObject, synthetic: Synthetic) -> None:
    whole = synthetic.manifest.to_json().rstrip()
    cut = draw.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DamagedIndexError):
        Manifest.from_json(whole[:cut])


@pytest.mark.parametrize("part", ["manifest", "model", "layer", "tokens"])
def test_a_field_too_few_or_too_many_is_damage(synthetic: Synthetic, part: str) -> None:
    def pick(body: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {
            "manifest": body,
            "model": body["model"],
            "layer": body["layers"][1],
            "tokens": body["layers"][1]["tokens"],
        }[part]
        return found

    whole = synthetic.manifest.to_json()
    names = list(pick(json.loads(whole)))
    for name in names:
        body = json.loads(whole)
        del pick(body)[name]
        with pytest.raises(DamagedIndexError):
            Manifest.from_json(json.dumps(body).encode())
    body = json.loads(whole)
    pick(body)["foreign"] = 1
    with pytest.raises(DamagedIndexError):
        Manifest.from_json(json.dumps(body).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"7", b'"text"', b"\xff\xfe", b"{", b"[" * 100_000],
    ids=["empty", "object", "list", "null", "number", "text", "not-utf8", "cut", "deep"],
)
def test_garbage_is_damaged(data: bytes) -> None:
    with pytest.raises(DamagedIndexError, match="not readable"):
        Manifest.from_json(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_damaged(data: bytes) -> None:
    with pytest.raises(DamagedIndexError):
        Manifest.from_json(data)


def spoil(body: dict[str, Any], path: str, value: Any) -> bytes:
    """The manifest with another value at a path such as `layers.0.name`."""
    *outer, last = path.split(".")
    inside: Any = body
    for name in outer:
        inside = inside[int(name) if isinstance(inside, list) else name]
    inside[last] = value
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rows", "70"),
        ("rows", 70.0),
        ("rows", True),
        ("rows", -1),
        ("rows", 2**63),
        ("valid_rows", 71),
        ("batch_size", 0),
        ("unit_rows", 0),
        ("written_by", None),
        ("written_by", "\ud800"),
        ("layers", {}),
        ("layers", []),
        ("model.input_size", [48]),
        ("model.input_size", [48, 0]),
        ("model.input_size", [48, 80, 3]),
        ("model.input_size", [48, 2**31]),
        ("model.transform", "ToTensor()"),
        ("layers.0.name", "stages.1.blocks.0.mlp"),
        ("layers.0.name", ""),
        ("layers.0.name", "../elsewhere"),
        ("layers.0.name", "a\0b"),
        ("layers.0.depth", 2**31),
        ("layers.0.dense", 1),
        ("layers.0.poolings", ["max"]),
        ("layers.0.poolings", ["mean", "mean"]),
        ("layers.0.poolings", ["mean", "median"]),
        ("layers.0.poolings", ["mean", ["max"]]),
        ("layers.0.tokens.prefix", [1]),
        ("recall_at_10", {}),
        ("recall_at_10", {"blocks.0.mlp": 1.0, "blocks.1.mlp": 1.0}),
        ("patch_recall_at_10", {"blocks.0.mlp": 1.0}),
        ("files", {"/etc/passwd": {"bytes": 1, "blake3": ""}}),
        ("files", {"../x": {"bytes": 1, "blake3": ""}}),
        ("files", {"a//b": {"bytes": 1, "blake3": ""}}),
        ("files", {"manifest.json": {"bytes": 1, "blake3": ""}}),
        ("files", {"a": {"bytes": 1, "blake3": 7}}),
        ("files", {"a": {"bytes": 1}}),
        ("files", {"\ud800": {"bytes": 1, "blake3": ""}}),
    ],
)
def test_values_that_no_index_has_are_damage(synthetic: Synthetic, path: str, value: Any) -> None:
    whole = synthetic.manifest.to_json()
    assert Manifest.from_json(whole) == synthetic.manifest
    with pytest.raises(DamagedIndexError, match="not readable"):
        Manifest.from_json(spoil(json.loads(whole), path, value))
