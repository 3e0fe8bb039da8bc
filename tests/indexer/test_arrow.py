"""Hugging Face data sets on disk, written by the real `datasets`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import Item, dataset

from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources import lazy, open_source

datasets = pytest.importorskip("datasets")

ITEMS = [Item(f"{n % 3}.jpg", bytes([n]) * n, "fox" if n % 2 else "café") for n in range(1, 12)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    dataset(ITEMS).save_to_disk(tmp_path / "set", num_shards=3)
    return tmp_path / "set"


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    whole = dataset(ITEMS)
    parts = {"train": whole, "test": whole.select([3, 1, 8])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "splits")
    return tmp_path / "splits"


def test_keys_number_the_pictures(saved: Path) -> None:
    rows = open_source(saved).rows
    assert [row.key for row in rows[:3]] == ["00000000/1.jpg", "00000001/2.jpg", "00000002/0.jpg"]
    assert [row.label for row in rows[:3]] == ["fox", "café", "fox"]


def test_a_split_is_chosen_by_name(splits: Path) -> None:
    assert len(open_source(splits, split="train").rows) == len(ITEMS)
    source = open_source(splits, split="test")
    assert [source.read(row) for row in range(3)] == [ITEMS[place].data for place in (3, 1, 8)]
    with pytest.raises(SourceError, match=r"has the splits train, test; choose one with --split\."):
        open_source(splits)
    with pytest.raises(SourceError, match=r"has no split 'val'; it has train, test\."):
        open_source(splits, split="val")
    with pytest.raises(SourceError, match="is not divided into splits; leave --split out"):
        open_source(splits / "train", split="test")


def test_a_shuffled_selection_keeps_its_order(tmp_path: Path) -> None:
    shuffled = dataset(ITEMS).shuffle(seed=3).select(range(5))
    shuffled.save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set")
    wanted = [each["bytes"] for each in shuffled.with_format("arrow")[:]["image"].to_pylist()]
    assert [source.read(row) for row in range(5)] == wanted


def test_missing_pictures_and_labels_are_rows(tmp_path: Path) -> None:
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])}
    )
    pictures = [{"bytes": b"x", "path": None}, None, {"bytes": None, "path": "/etc/hostname"}]
    columns = {"picture": pictures, "kind": [1, None, -1]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set")
    assert [row.label for row in source.rows] == ["b", None, None]
    assert [row.bytes for row in source.rows][:2] == [1, 0]
    assert source.rows[0].key == "00000000"
    assert source.read(0) == b"x"
    with pytest.raises(OSError, match="holds no bytes of it"):
        source.read(1)


def columns_of(names: dict[str, Any], values: dict[str, list[Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        made = datasets.Dataset.from_dict(values, features=datasets.Features(names))
        made.save_to_disk(path)

    return write


IMAGE = [{"bytes": b"x", "path": None}]
WRONG = [
    (columns_of({"a": datasets.Value("int64")}, {"a": [1]}), "has no column of pictures"),
    (
        columns_of({"a": datasets.Image(), "b": datasets.Image()}, {"a": IMAGE, "b": IMAGE}),
        "has the columns a, b of pictures",
    ),
    (columns_of({"image": datasets.Image()}, {"image": []}), "has no rows"),
]


@pytest.mark.parametrize(("write", "words"), WRONG)
def test_data_sets_without_pictures_are_refused(
    tmp_path: Path, write: Callable[[Path], None], words: str
) -> None:
    write(tmp_path / "set")
    with pytest.raises(SourceError, match=words) as caught:
        open_source(tmp_path / "set")
    assert str(caught.value).endswith(".")


def test_the_column_called_image_goes_before_others(tmp_path: Path) -> None:
    features = {"image": datasets.Image(), "mask": datasets.Image()}
    mask = [{"bytes": b"mask", "path": None}]
    columns_of(features, {"image": IMAGE, "mask": mask})(tmp_path / "set")
    assert open_source(tmp_path / "set").read(0) == b"x"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    body = json.loads(path.read_bytes())
    change(body)
    path.write_text(json.dumps(body))


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: (p / "state.json").write_text("{"), "state.json is missing or damaged"),
    (lambda p: (p / "state.json").write_text("[" * 99999), "state.json is missing or damaged"),
    (lambda p: (p / "dataset_info.json").write_text("[]"), "has no column of pictures"),
    (lambda p: (p / "data-00001-of-00003.arrow").unlink(), "cannot be read as an Arrow file"),
    (lambda p: (p / "data-00001-of-00003.arrow").write_bytes(b""), "cannot be read as an Arrow"),
    (lambda p: (p / "data-00001-of-00003.arrow").write_bytes(b"x" * 900), "cannot be read as an"),
    (lambda p: cut(p / "data-00002-of-00003.arrow", 200), "cannot be read as an Arrow file"),
    (lambda p: cut(p / "data-00002-of-00003.arrow", 8), r"Arrow file \(it is cut off\)"),
    (
        lambda p: edit(p / "state.json", lambda s: s["_data_files"][0].update(filename="../x")),
        "names the file '../x', which does not lie in it",
    ),
    (
        lambda p: edit(p / "state.json", lambda s: s.update(_indices_data_files=[{}])),
        "a selection of rows beside it",
    ),
    (
        lambda p: edit(p / "dataset_info.json", lambda i: i["features"]["label"].update(names=[])),
        "holds the label 1, but the data set names 0 labels only",
    ),
    (
        lambda p: edit(
            p / "dataset_info.json", lambda i: i.update(features={"label": {"_type": "Image"}})
        ),
        "does not hold encoded pictures",
    ),
    (
        lambda p: edit(
            p / "dataset_info.json", lambda i: i.update(features={"gone": {"_type": "Image"}})
        ),
        "have no columns called 'gone'",
    ),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_damaged_data_sets_are_refused(
    saved: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(saved)
    with pytest.raises(SourceError, match=words) as caught:
        open_source(saved)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_hostile_split_name_leads_nowhere(splits: Path) -> None:
    (splits / "dataset_dict.json").write_text('{"splits": ["../splits/train"]}')
    with pytest.raises(SourceError, match="which does not lie in it"):
        open_source(splits, split="../splits/train")


def test_without_pyarrow_the_extra_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(lazy, "import_module", missing)
    with pytest.raises(SourceError, match=r"need pyarrow; install it with .*vitscope\[arrow\]"):
        open_source(saved)


def test_flipped_bits_give_pictures_or_an_error(saved: Path) -> None:
    """Never bytes from elsewhere in memory, and never the end of the process."""
    path = saved / "data-00000-of-00003.arrow"
    whole = path.read_bytes()
    chance = np.random.default_rng(6)
    for place in chance.integers(0, len(whole), 200).tolist():
        data = bytearray(whole)
        data[place] ^= 1 << int(chance.integers(8))
        path.write_bytes(data)
        try:
            source = open_source(saved)
        except SourceError as error:
            message = str(error)
            assert "\n" not in message
            continue
        for row in range(len(source.rows)):
            try:
                assert len(source.read(row)) == source.rows[row].bytes
            except OSError:
                continue
