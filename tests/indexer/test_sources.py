"""Any kind of source: recognised by what is there, the same rows, the same activations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import BAD, jpeg, noise
from sources import Item, dataset, write_csv, write_folder, write_parquet, write_tars

from vitscope.client.cli import main
from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources import SourceRow, open_source
from vitscope.indexer.sources.boxlist import RowBoxes, make_box
from vitscope.indexer.sources.rows import RowListBuilder
from vitscope.indexer.sources.texts import utf8
from vitscope.store import layout
from vitscope.store.arrays import open_array
from vitscope.store.boxes import Box
from vitscope.store.generation import Generation, open_generation
from vitscope.store.manifest import Pooling

LABELS = ("fox", "café", "wood pigeon")
ITEMS = [
    Item(
        f"{LABELS[number % 3]}/{number:03d}.jpg",
        jpeg(noise(number)),
        LABELS[number % 3],
        ((number, 1, number + 9.5, 20),) if number % 4 else (),
    )
    for number in range(22)
]
BROKEN = [Item(f"fox/{name}", data, "fox") for name, data in BAD.items()]


def as_folder(root: Path, items: list[Item]) -> Path:
    return write_folder(root / "folder", items)


def as_tars(root: Path, items: list[Item]) -> Path:
    return write_tars(root / "tars", items, 3)


def as_dataset(root: Path, items: list[Item]) -> Path:
    dataset(items).save_to_disk(root / "data set", num_shards=2)
    return root / "data set"


def as_csv(root: Path, items: list[Item]) -> Path:
    return write_csv(write_folder(root / "listed", items) / "list.csv", items)


def as_parquet(root: Path, items: list[Item]) -> Path:
    columns: dict[str, list[Any]] = {
        "path": [item.name for item in items],
        "label": [item.label for item in items],
        "boxes": [[list(box) for box in item.boxes] for item in items],
        "ignored": list(range(len(items))),
    }
    return write_parquet(write_folder(root / "parquet", items) / "list.parquet", columns)


Layout = Callable[[Path, list[Item]], Path]
LAYOUTS: list[Layout] = [as_folder, as_tars, as_dataset, as_csv, as_parquet]
WITH_BOXES: list[Layout] = [as_tars, as_csv, as_parquet]


def shuffled() -> list[Item]:
    return [ITEMS[place] for place in np.random.default_rng(2).permutation(len(ITEMS))]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("arrange", LAYOUTS)
def test_rows_have_the_bytes_and_labels_of_the_pictures(tmp_path: Path, arrange: Layout) -> None:
    source = open_source(arrange(tmp_path, shuffled()))
    found = {
        sha256(source.read(row)): (listed.label, listed.bytes)
        for row, listed in enumerate(source.rows)
    }
    assert found == {sha256(item.data): (item.label, len(item.data)) for item in ITEMS}
    assert len(source.rows) == len({row.key for row in source.rows}) == len(ITEMS)
    assert source.notices == ()


@pytest.mark.parametrize("arrange", WITH_BOXES)
def test_rows_have_the_boxes_of_the_pictures(tmp_path: Path, arrange: Layout) -> None:
    source = open_source(arrange(tmp_path, ITEMS))
    found = {
        sha256(source.read(row)): tuple(box.corners for box in listed.boxes.boxes)
        for row, listed in enumerate(source.rows)
    }
    assert found == {sha256(item.data): item.boxes for item in ITEMS}


@pytest.mark.parametrize("arrange", LAYOUTS)
def test_limit_takes_the_first(tmp_path: Path, arrange: Layout) -> None:
    path = arrange(tmp_path, ITEMS)
    whole = list(open_source(path).rows)
    for limit in (1, 9, 100):
        source = open_source(path, limit=limit)
        assert list(source.rows) == whole[:limit]
        assert len(source.read(len(source.rows) - 1)) == source.rows[-1].bytes


@pytest.mark.parametrize("arrange", LAYOUTS)
def test_the_digest_is_that_of_the_list(tmp_path: Path, arrange: Layout) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    changed = [*ITEMS[:-1], Item(ITEMS[-1].name, b"shorter", ITEMS[-1].label)]
    digests = [
        open_source(arrange(root, items)).rows.digest()
        for root, items in ((first, ITEMS), (again, ITEMS), (other, changed))
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("arrange", LAYOUTS)
def test_many_threads_read_the_right_bytes(tmp_path: Path, arrange: Layout) -> None:
    source = open_source(arrange(tmp_path, ITEMS))
    alone = [source.read(row) for row in range(len(ITEMS))]
    rows = np.random.default_rng(0).integers(0, len(ITEMS), 600).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, rows)) == [alone[row] for row in rows]


@dataclass(frozen=True)
class Pair:
    """An index of the plain folder, and one of another layout, its pictures in another order."""

    plain: Generation
    other: Generation

    @property
    def order(self) -> list[int]:
        """For each row of the plain index, the other's row with the same bytes."""
        found = {self.other.rows.record(row).sha256: row for row in range(len(self.other.rows))}
        return [found[self.plain.rows.record(row).sha256] for row in range(len(found))]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    oracle.save_random_model("test_vit", root / "weights.safetensors", img_size=64)
    write_folder(root / "pictures", [*ITEMS, *BROKEN])
    return index(root, root, root / "pictures")


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda arrange: arrange.__name__)
def pair(
    plain: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    root = tmp_path_factory.mktemp("other")
    items = [*BROKEN[:2], *shuffled(), *BROKEN[2:]]
    other = index(plain.parent, root, request.param(root, items))
    return Pair(open_generation(plain), open_generation(other))


def index(weights: Path, root: Path, data: Path) -> Path:
    out = root / "index"
    model = ["--model", "test_vit", "--checkpoint", str(weights / "weights.safetensors")]
    # One picture a batch: in other company a picture may round differently.
    sizes = ["--img-size", "64", "--batch-size", "1", "--unit-rows", "10", "--top-k", "5"]
    assert main(["index", *model, *sizes, "--data", str(data), "--out", str(out)]) == 0
    return out


def test_the_same_pictures_have_the_same_scores(pair: Pair) -> None:
    order = pair.order
    assert pair.plain.manifest.valid_rows == len(ITEMS) == pair.other.manifest.valid_rows
    for layer in pair.plain.manifest.layers:
        for pooling in layer.poolings:
            mine, other = (
                open_array(layout.layer_path(path, layer.name) / layout.scores_name(pooling)).read()
                for path in (pair.plain.path, pair.other.path)
            )
            assert np.array_equal(mine, other[:, order], equal_nan=True)


def test_the_same_pictures_have_the_same_records(pair: Pair) -> None:
    for row, place in enumerate(pair.order):
        mine, other = pair.plain.rows.record(row), pair.other.rows.record(place)
        kept = ("label", "valid", "reason", "bytes", "sha256")
        assert [getattr(mine, name) for name in kept] == [getattr(other, name) for name in kept]


def test_the_same_pictures_are_on_top(pair: Pair) -> None:
    for layer in pair.plain.manifest.layers:
        for pooling in layer.poolings:
            for channel in range(0, layer.channels, 7):
                tops = [
                    _top(generation, layer.name, pooling, channel)
                    for generation in (pair.plain, pair.other)
                ]
                assert tops[0] == tops[1]


def _top(
    generation: Generation, layer: str, pooling: Pooling, channel: int
) -> tuple[list[float], set[tuple[float, str]]]:
    """The scores of the top images, and score and content of each that is surely among them."""
    rows, scores = generation.top(layer, pooling, channel)
    contents = [generation.rows.record(row).sha256 for row in rows.tolist()]
    pairs = set(zip(scores.tolist(), contents, strict=True))
    # Ties are broken by row: which of several equal ones comes last is the layout's affair.
    return scores.tolist(), {pair for pair in pairs if pair[0] > scores.min()}


# --- recognising -----------------------------------------------------------------------------


def mixed(root: Path) -> Path:
    write_folder(as_tars(root, ITEMS), ITEMS)
    return root / "tars"


def mixed_dataset(root: Path) -> Path:
    (as_dataset(root, ITEMS) / "shard.tar").write_bytes(b"")
    return root / "data set"


def empty(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def list_only(root: Path) -> Path:
    write_csv(empty(root) / "list.csv", ITEMS)
    return root / "empty"


def text(root: Path) -> Path:
    (root / "notes.txt").write_text("foxes")
    return root / "notes.txt"


UNKNOWN: list[tuple[Layout, str]] = [
    (lambda root, _: root / "none", "There is no folder of pictures, archive or list"),
    (lambda root, _: root / "none-{00..03}.tar", "There is no shard .*none-00.tar"),
    (lambda root, _: root / "none-{000..9999999}.tar", "means more than 1,000,000 shards"),
    (lambda root, _: root / "*.tar", "No file matches"),
    (lambda root, _: text(root), "is no source of pictures; give a folder, a .tar, or a list"),
    (lambda root, _: text(root).parent / "*.txt", "A pattern is for tar shards"),
    (lambda root, _: empty(root), "holds no picture"),
    (lambda root, _: list_only(root), "give .*empty/list.csv"),
    (lambda root, _: mixed(root), "holds both tar shards and pictures, such as shard-000000.tar"),
    (lambda root, _: mixed_dataset(root), "holds both a Hugging Face data set and tar shards"),
]


@pytest.mark.parametrize(("make", "words"), UNKNOWN)
def test_what_is_no_source_or_two_is_refused(tmp_path: Path, make: Layout, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        open_source(make(tmp_path, ITEMS))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_split_is_for_data_sets_only(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--split is for Hugging Face data sets"):
        open_source(as_folder(tmp_path, ITEMS), split="train")


@pytest.mark.parametrize(
    "pattern", ["shard-00000{0..2}.tar", "shard-{000000..000002}.tar", "*.tar", "s*-00000[0-2].tar"]
)
def test_patterns_mean_the_shards_of_the_folder(tmp_path: Path, pattern: str) -> None:
    folder = as_tars(tmp_path, ITEMS)
    assert list(open_source(folder / pattern).rows) == list(open_source(folder).rows)
    some = open_source(folder / "shard-00000{2,0}.tar").rows
    assert {row.key.split("/")[0] for row in some} == {"shard-000000.tar", "shard-000002.tar"}
    assert some[0].key.startswith("shard-000002.tar/")


# --- the row list ----------------------------------------------------------------------------

TEXT = st.text(max_size=6).map(utf8)
CORNERS = st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 2, *[st.integers(1, 500)] * 2)


@st.composite
def row_boxes(draw: st.DrawFn) -> RowBoxes:
    boxes = [
        make_box(draw(st.none() | TEXT), (x, y, x + width, y + height))
        for x, y, width, height in draw(st.lists(CORNERS, max_size=3))
    ]
    frame = draw(st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)))
    return RowBoxes(tuple(boxes), frame if boxes else None)


ROWS = st.builds(SourceRow, TEXT, st.none() | TEXT, st.integers(0, 2**60), row_boxes())


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=9))
def test_rows_come_back_from_their_columns(rows: list[SourceRow]) -> None:
    builder = RowListBuilder()
    for row in rows:
        builder.add(row.key, row.label, row.bytes, row.boxes)
    frozen = builder.freeze()
    assert len({row.key for row in frozen}) == len(rows)
    seen: set[str] = set()
    for row, found in zip(rows, frozen, strict=True):
        key = found.key if row.key in seen else row.key
        seen.add(row.key)
        assert found == replace(row, key=key)
        assert found.key.startswith(row.key)


def test_equal_keys_are_told_apart_without_taking_another_rows() -> None:
    builder = RowListBuilder()
    for key in ("a", "a#2", "a", "a", "b"):
        builder.add(key, None, 0)
    assert [row.key for row in builder.freeze()] == ["a", "a#2", "a#3", "a#4", "b"]


def test_boxes_follow_the_picture_from_the_frame_they_were_drawn_in() -> None:
    boxes = RowBoxes((Box("fox", 10, 20, 30, 50),), (100, 200))
    assert boxes.in_pixels(100, 200) == boxes.boxes
    assert boxes.in_pixels(50, 400) == (Box("fox", 5, 40, 15, 100),)
    assert RowBoxes(boxes.boxes).in_pixels(50, 400) == boxes.boxes
