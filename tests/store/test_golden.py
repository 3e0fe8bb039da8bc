"""Indexes written once, of every format version, and one written now: today's reader answers all.

Every answer is compared with plain NumPy over the dense activations that lie beside the index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import make_golden
import numpy as np
import numpy.typing as npt
import pytest

from vitscope.store.errors import NotKeptError
from vitscope.store.generation import Generation, open_generation
from vitscope.store.manifest import FORMAT_VERSION, Pooling
from vitscope.store.neighbours import nearest
from vitscope.store.verify import verify

COMMITTED = sorted(make_golden.DATA.glob("golden-v*"))
LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)

Doubles = npt.NDArray[np.float64]
Case = tuple[str, Pooling]


class Golden:
    """A golden index, opened, and its truth."""

    def __init__(self, folder: Path) -> None:
        self.index = folder / "index"
        self.generation: Generation = open_generation(self.index)
        self.body: dict[str, Any] = json.loads((folder / "truth.json").read_text("utf-8"))
        with np.load(folder / "truth.npz") as arrays:
            self.activations: dict[str, npt.NDArray[np.float16]] = dict(arrays)
        self.layers: dict[str, Any] = {layer["name"]: layer for layer in self.body["layers"]}
        self.valid = np.array([record["valid"] for record in self.body["records"]])
        self.rows = np.flatnonzero(self.valid)

    def cases(self) -> Iterator[Case]:
        """Every layer with every pooling."""
        for name, layer in self.layers.items():
            for pooling in layer["poolings"]:
                yield name, pooling

    def patches(self, layer: str) -> Doubles:
        """(N, P, C)"""
        return self.activations[layer][:, len(self.layers[layer]["tokens"]["prefix"]) :].astype(
            float
        )

    def scores(self, layer: str, pooling: Pooling) -> npt.NDArray[np.float16]:
        """(N, C), NaN on invalid rows."""
        if pooling == "cls":
            place = self.layers[layer]["tokens"]["prefix"].index("cls")
            wide = self.activations[layer][:, place].astype(float)
        else:
            patches = self.patches(layer)
            wide = patches.mean(axis=1) if pooling == "mean" else patches.max(axis=1)
        scores: npt.NDArray[np.float16] = wide.astype(np.float16)
        scores[~self.valid] = np.nan
        return scores

    def best(self, layer: str, pooling: Pooling, channel: int) -> list[int]:
        """Valid rows: higher score first, then lower row."""
        scores = self.scores(layer, pooling)[self.rows, channel].astype(float)
        order = np.argsort(-scores, kind="stable")
        return [int(row) for row in self.rows[order]]


@pytest.fixture(scope="module", params=[*COMMITTED, "now"], ids=lambda path: Path(path).name)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    if request.param != "now":
        return Golden(request.param)
    folder = tmp_path_factory.mktemp("golden") / "now"
    make_golden.make(folder)
    return Golden(folder)


def same(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> bool:
    """Equal to the bit in type, shape and value; NaN equals NaN."""
    return found.dtype == truth.dtype and np.array_equal(
        found, truth, equal_nan=truth.dtype.kind == "f"
    )


def contains(found: Any, truth: Any) -> bool:
    """Whether `found` has all that `truth` has; later versions may know more fields."""
    if isinstance(truth, dict):
        return all(contains(found[key], value) for key, value in truth.items())
    if isinstance(truth, list):
        return len(found) == len(truth) and all(map(contains, found, truth))
    return bool(found == truth)


def test_every_format_version_has_its_golden_index() -> None:
    expected = [f"golden-v{version}" for version in range(1, FORMAT_VERSION + 1)]
    assert [path.name for path in COMMITTED] == expected, "python tests/make_golden.py makes it"


def test_a_golden_index_is_not_made_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("mine")
    assert make_golden.main([str(tmp_path)]) == 2
    assert "is not made twice" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_it_is_sound(golden: Golden) -> None:
    assert verify(golden.index, deep=True).problems == ()
    assert golden.generation.name == golden.body["generation"]


def test_the_manifest(golden: Golden) -> None:
    manifest = golden.generation.manifest
    assert (manifest.rows, manifest.valid_rows) == (len(golden.valid), len(golden.rows))
    assert contains(asdict(manifest.model), json_of(golden.body["model"]))
    assert contains([asdict(layer) for layer in manifest.layers], golden.body["layers"])
    assert any(layer.dense for layer in manifest.layers)


def json_of(value: Any) -> Any:
    """As JSON keeps it, with tuples for the lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


def test_the_row_table(golden: Golden) -> None:
    table = golden.generation.rows
    records: Sequence[dict[str, Any]] = golden.body["records"]
    assert len(table) == len(records)
    for row, record in enumerate(records):
        assert contains(asdict(table.record(row)), record)
        assert (table.key(row), table.label(row)) == (record["key"], record["label"])
        assert table.sizes[row].tolist() == [record["width"], record["height"]]
        digest = hashlib.sha256(golden.generation.thumbnail(row)).hexdigest()
        assert digest == golden.body["thumbnails"][row]
    assert table.valid.tolist() == golden.valid.tolist()
    assert table.label_names == tuple(sorted({r["label"] for r in records} - {None}))
    assert any(record["boxes"] for record in records)


def test_views_came_with_version_2(golden: Golden) -> None:
    table = golden.generation.rows
    views = [table.view(row) for row in range(len(table))]
    old = "golden-v1" in golden.index.parts
    assert table.has_views != old
    assert [view is not None for view in views] == [bool(v) and not old for v in golden.valid]
    # Versions 1 and 2 hold grids of other places.
    [even] = {layer.tokens.left == 0 for layer in golden.generation.manifest.layers[1:]}
    assert even == old


def test_scores_both_ways(golden: Golden) -> None:
    for layer, pooling in golden.cases():
        truth = golden.scores(layer, pooling)
        for channel, scores in enumerate(truth.T):
            assert same(golden.generation.scores(layer, pooling, channel), scores)
        for row, scores in enumerate(truth):
            assert same(golden.generation.image_scores(layer, pooling, row), scores)


def test_top_images_and_their_maps(golden: Golden) -> None:
    for layer, pooling in golden.cases():
        record, scores = golden.layers[layer], golden.scores(layer, pooling)
        grid = record["tokens"]["height"], record["tokens"]["width"]
        patches = golden.patches(layer).astype(np.float16)
        for channel in range(record["channels"]):
            best = golden.best(layer, pooling, channel)[: record["top_k"]]
            rows, found = golden.generation.top(layer, pooling, channel)
            assert rows.tolist() == best
            assert same(found, scores[best, channel])
            maps = golden.generation.top_maps(layer, pooling, channel, np.arange(len(best)))
            assert same(maps, patches[best, :, channel].reshape(-1, *grid))


def test_statistics(golden: Golden) -> None:
    count = len(golden.rows)
    for layer, pooling in golden.cases():
        found = golden.generation.statistics(layer, pooling)
        scores = golden.scores(layer, pooling)[golden.rows].astype(float)
        np.testing.assert_allclose(found.mean, scores.mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.variance, scores.var(0), rtol=1e-9, atol=1e-12)
        assert same(found.active, (scores > 0).sum(0) / count)
        places = [max(0, int(np.ceil(round(level * count, 9))) - 1) for level in LEVELS]
        assert same(found.quantiles, np.sort(scores, 0)[places].T.astype(np.float16))


def test_correlation(golden: Golden) -> None:
    for layer, record in golden.layers.items():
        scores = golden.scores(layer, "mean")[golden.rows].astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            truth = np.corrcoef(scores.T)
        for channel in range(record["channels"]):
            found = golden.generation.correlation(layer, channel)
            np.testing.assert_allclose(found, truth[channel], atol=1e-6)


def test_all_activations_of_a_layer(golden: Golden) -> None:
    for layer, record in golden.layers.items():
        if not record["dense"]:
            with pytest.raises(NotKeptError):
                golden.generation.activations(layer, 0, 0)
            continue
        truth = golden.activations[layer].transpose(0, 2, 1).copy()
        truth[~golden.valid] = np.nan
        for row in range(len(truth)):
            assert same(golden.generation.activations(layer, row, slice(None)), truth[row])


def test_nearest_images(golden: Golden) -> None:
    for layer in golden.layers:
        vectors = golden.scores(layer, "mean")[golden.rows].astype(float)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        cosines = np.full((len(golden.valid), len(golden.valid)), -2.0)
        cosines[np.ix_(golden.rows, golden.rows)] = unit @ unit.T
        np.fill_diagonal(cosines, -2.0)
        index, kept = golden.generation.neighbours(layer), golden.generation.image_vectors(layer)
        for row in golden.rows.tolist():
            query = golden.scores(layer, "mean")[row].astype(float)
            found, near = nearest(index, kept, query, 7, range(row, row + 1))
            np.testing.assert_allclose(near, np.sort(cosines[row])[::-1][:7], atol=1e-6)
            np.testing.assert_allclose(near, cosines[row, found], atol=1e-6)
            assert len(set(found.tolist())) == 7


def test_nearest_patches_came_with_version_3(golden: Golden) -> None:
    old = bool({"golden-v1", "golden-v2"} & set(golden.index.parts))
    for layer, record in golden.layers.items():
        index = golden.generation.patch_neighbours(layer)
        assert (index is None) == (old or not record["dense"])
        if index is None:
            continue
        kept = golden.generation.patch_vectors(layer)
        vectors = golden.patches(layer)[golden.rows].reshape(-1, record["channels"])
        cells = golden.patches(layer).shape[1]
        ids = (golden.rows[:, None] * cells + np.arange(cells)).ravel()
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        for place, own in enumerate(ids.tolist()):
            cosines = unit @ unit[place]
            cosines[place] = -2
            found, near = nearest(index, kept, vectors[place], 7, range(own, own + 1))
            np.testing.assert_allclose(near, np.sort(cosines)[::-1][:7], atol=1e-6)
            np.testing.assert_allclose(near, cosines[np.searchsorted(ids, found)], atol=1e-6)
            assert len(set(found.tolist())) == 7
