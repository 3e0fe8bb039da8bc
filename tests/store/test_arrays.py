"""Arrays on disk: read alike by other Zarr readers, and never wrong without saying so."""

from __future__ import annotations

import json
import math
import random
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray
import zarr
from hypothesis import given
from hypothesis import strategies as st
from synthetic import Synthetic, top_arrays

from vitscope.store import layout
from vitscope.store.arrays import (
    ArraySpec,
    create_array,
    leading_spec,
    line_spec,
    open_array,
    write_array,
)
from vitscope.store.errors import DamagedIndexError, NotWrittenError
from vitscope.store.manifest import QUANTILES

Truth = Mapping[str, npt.NDArray[Any]]


def layer_truth(synthetic: Synthetic, layer: str) -> Truth:
    """Every array of a layer's group, from the dense activations."""
    record = synthetic.layers[layer]
    truth: dict[str, npt.NDArray[Any]] = {}
    for pooling in record.poolings:
        scores = synthetic.scores(layer, pooling)
        rows, best, maps = top_arrays(record, scores, synthetic.maps(layer))
        truth |= {
            f"scores_{pooling}": scores.T,
            f"top_rows_{pooling}": rows,
            f"top_scores_{pooling}": best,
            f"top_maps_{pooling}": maps,
            f"row_scores_{pooling}": scores,
        }
        wide = scores[synthetic.valid].astype(np.float64)
        quantiles = np.quantile(wide, QUANTILES, axis=0, method="inverted_cdf").T
        truth |= {
            f"score_mean_{pooling}": wide.mean(0),
            f"score_variance_{pooling}": wide.var(0),
            f"score_active_{pooling}": (wide > 0).mean(0),
            f"score_quantiles_{pooling}": quantiles.astype(np.float16),
        }
    means = synthetic.scores(layer, "mean")[synthetic.valid].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        truth["correlation_mean"] = np.asarray(np.corrcoef(means.T), np.float32)
    return truth


def rows_truth(synthetic: Synthetic) -> Truth:
    """Every array of the row table, from the records."""
    records = synthetic.records
    names = sorted({record.label for record in records if record.label})
    labels = [names.index(record.label) if record.label else -1 for record in records]
    texts = {
        "key": [record.key.encode() for record in records],
        "reason": [record.reason.encode() for record in records],
        "label_name": [name.encode() for name in names],
        "thumbnail": list(synthetic.thumbnails),
    }
    truth: dict[str, npt.NDArray[Any]] = {
        "valid": np.array([int(record.valid) for record in records], np.uint8),
        "label": np.array(labels, np.int32),
        "width": np.array([record.width for record in records], np.int32),
        "height": np.array([record.height for record in records], np.int32),
        "view": np.array([record.view or (np.nan,) * 4 for record in records], np.float32),
        "bytes": np.array([record.bytes for record in records], np.int64),
        "sha256": np.array([list(bytes.fromhex(r.sha256 or "00" * 32)) for r in records], np.uint8),
    }
    for name, values in texts.items():
        edges = [sum(map(len, values[:count])) for count in range(len(values) + 1)]
        truth[name] = np.array(list(b"".join(values)), np.uint8)
        truth[f"{name}_edge"] = np.array(edges, np.int64)
    return truth


def groups(synthetic: Synthetic) -> Iterator[tuple[Path, Truth]]:
    yield layout.rows_path(synthetic.folder), rows_truth(synthetic)
    for layer in synthetic.layers:
        yield layout.layer_path(synthetic.folder, layer), layer_truth(synthetic, layer)


def same(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> bool:
    """Equal to the bit, element type included; NaN equals NaN.

    Statistics, in float64, and correlations are equal but for the order of additions.
    """
    if truth.dtype == np.float64 or (truth.dtype == np.float32 and len(truth) == truth.shape[-1]):
        close = np.allclose(found, truth, rtol=1e-6, atol=1e-6, equal_nan=True)
        return found.dtype == truth.dtype and close
    return found.dtype == truth.dtype and np.array_equal(
        found, truth, equal_nan=truth.dtype.kind == "f"
    )


def test_own_reader_gives_the_dense_truth_of_every_array(synthetic: Synthetic) -> None:
    for group, truth in groups(synthetic):
        assert {path.name for path in group.iterdir() if path.is_dir()} == set(truth)
        for name, values in truth.items():
            array = open_array(group / name)
            assert (array.shape, array.dtype) == (values.shape, values.dtype)
            assert same(array.read(), values), name


def test_zarr_python_reads_every_array(synthetic: Synthetic) -> None:
    root = zarr.open(str(synthetic.folder / "arrays.zarr"), mode="r")
    assert isinstance(root, zarr.Group)
    read = {
        path: np.asarray(member[...])
        for path, member in root.members(max_depth=None)
        if isinstance(member, zarr.Array)
    }
    expected = {
        f"{group.relative_to(synthetic.folder / 'arrays.zarr').as_posix()}/{name}": values
        for group, truth in groups(synthetic)
        for name, values in truth.items()
    }
    assert set(read) == set(expected)
    for path, values in expected.items():
        assert same(read[path], values), path


def test_xarray_opens_every_group_with_named_dimensions(synthetic: Synthetic) -> None:
    for group, truth in groups(synthetic):
        # Without decoding, which would make int64 of masked values into floats.
        with xarray.open_zarr(group, consolidated=False, mask_and_scale=False) as dataset:
            assert set(dataset.variables) == set(truth)
            for name, values in truth.items():
                assert same(dataset[name].values, values), name
                assert not any(str(dim).startswith("dim_") for dim in dataset[name].dims), name
    group = layout.layer_path(synthetic.folder, "blocks.0.mlp")
    with xarray.open_zarr(group, consolidated=False) as dataset:
        assert dataset["scores_cls"].dims == ("channel", "row")
        assert dataset["top_maps_cls"].dims == ("channel", "rank", "y", "x")
        sizes = {"channel": 11, "row": 70, "rank": 6, "y": 3, "x": 5}
        assert dict(dataset.sizes) == {**sizes, "other_channel": 11, "quantile": 9}


def test_xarray_decodes_scores_to_the_same_values(synthetic: Synthetic) -> None:
    group = layout.layer_path(synthetic.folder, "blocks.0.mlp")
    with xarray.open_zarr(group, consolidated=False) as dataset:
        found = dataset["scores_mean"].values
    truth = synthetic.scores("blocks.0.mlp", "mean").T
    assert np.array_equal(found, truth, equal_nan=True)


def test_every_inner_chunk_carries_a_checksum_and_floats_are_filled_with_nan(
    synthetic: Synthetic,
) -> None:
    count = 0
    for path in synthetic.folder.rglob("zarr.json"):
        body = json.loads(path.read_bytes())
        if body["node_type"] != "array":
            continue
        count += 1
        (sharding,) = body["codecs"]
        assert sharding["name"] == "sharding_indexed"
        assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == [
            "bytes",
            "crc32c",
        ]
        assert sharding["configuration"]["index_codecs"][-1]["name"] == "crc32c"
        filled = "NaN" if body["data_type"].startswith("float") else 0
        assert body["fill_value"] == filled
        assert len(body["dimension_names"]) == len(body["shape"])
    assert count == sum(len(truth) for _, truth in groups(synthetic))


def test_scores_lie_in_a_shard_per_unit_of_rows(synthetic: Synthetic) -> None:
    array = layout.layer_path(synthetic.folder, "blocks.0.mlp") / "scores_max"
    shards = sorted(path.relative_to(array).as_posix() for path in array.rglob("c/*/*"))
    assert shards == ["c/0/0", "c/0/1", "c/0/2"]


def flipped(source: Path, target: Path, shard: str, bit: int) -> Path:
    """A copy of an array in which one bit of one shard is the other way round."""
    shutil.copytree(source, target)
    data = bytearray((target / shard).read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    (target / shard).write_bytes(data)
    return target


def test_no_flipped_bit_of_a_shard_gives_a_wrong_number(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    source = layout.layer_path(synthetic.folder, "blocks.0.mlp") / "scores_mean"
    truth = synthetic.scores("blocks.0.mlp", "mean").T
    chance = random.Random(7)
    refused = 0
    for number in range(60):
        shard = f"c/0/{number % 3}"
        bit = chance.randrange((source / shard).stat().st_size * 8)
        # A fresh path each time: the cache of arrays is by path.
        array = open_array(flipped(source, tmp_path / str(number), shard, bit))
        for channel in range(truth.shape[0]):
            try:
                found = array.read(channel)
            except DamagedIndexError:
                refused += 1
            else:
                assert same(found, truth[channel]), (shard, bit, channel)
    # A flip spoils one chunk of eight channels, or the shard's index and so all.
    assert refused >= 60 * 3


def test_a_flip_at_every_byte_is_noticed_when_all_is_read(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    source = layout.layer_path(synthetic.folder, "blocks.1.mlp") / "top_scores_mean"
    (shard,) = (path for path in source.rglob("c/*/*"))
    name = shard.relative_to(source).as_posix()
    for byte in range(0, shard.stat().st_size, 41):
        array = open_array(flipped(source, tmp_path / str(byte), name, byte * 8 + byte % 8))
        with pytest.raises(DamagedIndexError):
            array.read()


def test_a_missing_shard_is_damage_and_not_fill_values(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    source = layout.layer_path(synthetic.folder, "blocks.0.mlp") / "scores_mean"
    copy = Path(shutil.copytree(source, tmp_path / "scores_mean"))
    (copy / "c/0/1").unlink()
    array = open_array(copy)
    with pytest.raises(DamagedIndexError, match="scores_mean"):
        array.read(0)
    # What the other shards hold is still there.
    truth = synthetic.scores("blocks.0.mlp", "mean").T
    assert same(array.read(slice(None), slice(0, 32)), truth[:, :32])


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_cut_shard_is_damage(synthetic: Synthetic, tmp_path: Path, cut: int) -> None:
    source = layout.layer_path(synthetic.folder, "blocks.0.mlp") / "scores_mean"
    copy = Path(shutil.copytree(source, tmp_path / "scores_mean"))
    data = (copy / "c/0/1").read_bytes()
    (copy / "c/0/1").write_bytes(data[:cut])
    with pytest.raises(DamagedIndexError):
        open_array(copy).read(0)


def test_an_array_that_is_not_there_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedIndexError, match=r"Array scores_mean .* missing") as caught:
        open_array(tmp_path / "scores_mean")
    assert str(tmp_path) not in str(caught.value)


def test_what_was_not_written_reads_as_damage(tmp_path: Path) -> None:
    spec = ArraySpec("float16", (4, 6), ("channel", "row"), (4, 3), (2, 3))
    array = create_array(tmp_path / "part", spec)
    array.write(np.ones((4, 3), np.float16), slice(None), slice(3, 6))
    reader = open_array(tmp_path / "part")
    assert reader.read(slice(None), slice(3, 6)).tolist() == [[1.0] * 3] * 4
    with pytest.raises(DamagedIndexError):
        reader.read()


def test_values_equal_to_the_fill_value_are_stored(tmp_path: Path) -> None:
    values = np.full((3, 5), np.nan, np.float16)
    write_array(tmp_path / "holes", values, leading_spec("float16", (3, 5), ("a", "b"), 2))
    write_array(tmp_path / "zeros", np.zeros(9, np.int64), line_spec("int64", 9, "a"))
    assert np.isnan(open_array(tmp_path / "holes").read()).all()
    assert open_array(tmp_path / "zeros").read().tolist() == [0] * 9


def test_creating_an_array_again_keeps_what_it_holds(tmp_path: Path) -> None:
    spec = ArraySpec("int32", (6,), ("row",), (3,), (3,))
    create_array(tmp_path / "twice", spec).write(np.array([1, 2, 3], np.int32), slice(0, 3))
    create_array(tmp_path / "twice", spec).write(np.array([4, 5, 6], np.int32), slice(3, 6))
    assert open_array(tmp_path / "twice").read().tolist() == [1, 2, 3, 4, 5, 6]


SHAPES = st.lists(st.integers(1, 5000), min_size=1, max_size=4).map(tuple)


@given(SHAPES, st.integers(1, 2000), st.sampled_from(["uint8", "float16", "int64"]))
def test_shards_are_whole_chunks_of_bounded_size(
    shape: tuple[int, ...], rows_per_chunk: int, dtype: str
) -> None:
    names = tuple("abcd"[: len(shape)])
    spec = leading_spec(dtype, shape, names, rows_per_chunk)
    assert all(shard % chunk == 0 for shard, chunk in zip(spec.shard, spec.chunk, strict=True))
    assert (spec.chunk[0], spec.chunk[1:]) == (rows_per_chunk, shape[1:])
    size = np.dtype(dtype).itemsize
    chunk_bytes = math.prod(spec.chunk) * size
    assert math.prod(spec.shard) * size <= max(64 << 20, chunk_bytes)
    # No shard is more than one chunk longer than the array.
    assert spec.shard[0] < shape[0] + rows_per_chunk


@given(st.integers(0, 10**9))
def test_lines_are_stored_in_whole_chunks(length: int) -> None:
    spec = line_spec("uint8", length, "byte")
    assert spec.shape == (length,)
    assert spec.shard[0] % spec.chunk[0] == 0
    assert spec.shard[0] <= max(1, length + spec.chunk[0])


@pytest.mark.parametrize("rows", [slice(0, 64), slice(8, 16)])
def test_what_the_disk_refuses_is_named(tmp_path: Path, rows: slice) -> None:
    """Whole shards, and parts of one, which TensorStore writes."""
    array = create_array(tmp_path / "a", leading_spec("float16", (64, 64), ("row", "channel"), 8))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(NotWrittenError) as caught:
            array.write(np.ones((rows.stop - rows.start, 64), np.float16), rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == "Array a cannot be written; the disk refuses it: File too large."
