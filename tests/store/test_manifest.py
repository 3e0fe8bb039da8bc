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

NAMES = st.text(max_size=12)
COUNTS = st.integers(0, 2**53)
CELLS = st.floats(0, exclude_min=True, allow_infinity=False)
CORNERS = st.floats(allow_nan=False, allow_infinity=False)
LAYERS = st.builds(
    LayerRecord,
    name=NAMES,
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
    poolings=st.lists(st.sampled_from(POOLINGS), unique=True).map(tuple),
    top_k=COUNTS,
)
MANIFESTS = st.builds(
    Manifest,
    model=st.builds(
        ModelRecord,
        name=NAMES,
        weights_source=NAMES,
        weights_sha256=NAMES,
        input_size=st.tuples(COUNTS, COUNTS),
        dtype=NAMES,
        transform=st.lists(NAMES, max_size=3).map(tuple),
        decoder=NAMES,
        exif=NAMES,
    ),
    layers=st.lists(LAYERS, max_size=3).map(tuple),
    rows=COUNTS,
    valid_rows=COUNTS,
    rows_sha256=NAMES,
    batch_size=COUNTS,
    unit_rows=COUNTS,
    saturated=COUNTS,
    thumbnail_size=COUNTS,
    recall_at_10=st.dictionaries(NAMES, st.floats(0, 1), max_size=3),
    patch_recall_at_10=st.dictionaries(NAMES, st.floats(0, 1), max_size=3),
    patch_recall_at_10_elsewhere=st.dictionaries(NAMES, st.floats(0, 1), max_size=3),
    written_by=NAMES,
    files=st.dictionaries(NAMES, st.builds(FileRecord, bytes=COUNTS, blake3=NAMES), max_size=3),
)


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
