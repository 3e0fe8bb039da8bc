"""Every score, every top image and every map of an index against brute force, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import oracle
import pytest
from pictures import BAD, write_pictures

from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.run import index
from vitscope.store import neighbours
from vitscope.store.errors import NotKeptError
from vitscope.store.generation import Generation, open_generation

ROWS, BATCH, UNIT, K = 45, 8, 16, 7

MODELS = [
    # name, side, prefix tokens
    ("test_vit", 96, 1),
    ("deit_tiny_distilled_patch16_224", 64, 2),
    ("vit_medium_patch16_reg1_gap_256", 64, 1),
]


@dataclass(frozen=True)
class Run:
    generation: Generation
    truth: dict[str, oracle.Floats]
    """Per layer, activations (N, T, C) float32."""
    prefix: int


@pytest.fixture(scope="module", params=MODELS, ids=lambda row: row[0])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    name, side, prefix = request.param
    folder = tmp_path_factory.mktemp(name)
    checkpoint = folder / "weights.safetensors"
    oracle.save_random_model(name, checkpoint, img_size=side)
    files = write_pictures(folder / "pictures", ROWS)
    # The same bytes twice: equal scores on every channel.
    files[20].write_bytes(files[3].read_bytes())
    index(
        Options(
            device="cpu",
            model=name,
            data=folder / "pictures",
            out=folder / "index",
            weights=Weights(checkpoint),
            img_size=side and (side, side),
            top_k=K,
            batch_size=BATCH,
            unit_rows=UNIT,
            retain_all=("blocks.1.mlp",),
        )
    )
    # Batches start anew with every unit.
    parts: dict[str, list[oracle.Floats]] = {}
    for start in range(0, ROWS, UNIT):
        model = oracle.load(name, checkpoint, img_size=side)
        unit = files[start : start + UNIT]
        for batch in oracle.activations(model, unit, BATCH, side=side):
            for layer, values in batch.items():
                parts.setdefault(layer, []).append(values)
    truth = {layer: np.concatenate(each) for layer, each in parts.items()}
    return Run(open_generation(folder / "index"), truth, prefix)


def test_every_layer_is_there(run: Run) -> None:
    assert [layer.name for layer in run.generation.manifest.layers] == list(run.truth)


def test_scores(run: Run) -> None:
    for layer in run.generation.manifest.layers:
        for pooling in layer.poolings:
            expected = oracle.pooled(run.truth[layer.name], run.prefix, pooling)
            for channel in range(layer.channels):
                found = run.generation.scores(layer.name, pooling, channel)
                assert np.array_equal(found, expected[:, channel])


def test_top_images_and_their_maps(run: Run) -> None:
    for layer in run.generation.manifest.layers:
        truth = run.truth[layer.name]
        height, width = layer.tokens.height, layer.tokens.width
        maps = truth[:, run.prefix :].reshape(ROWS, height, width, -1).astype(np.float16)
        for pooling in layer.poolings:
            scores = oracle.pooled(truth, run.prefix, pooling)
            best = oracle.best(scores, K)
            for channel in range(layer.channels):
                rows, found = run.generation.top(layer.name, pooling, channel)
                assert np.array_equal(rows, best[channel])
                assert np.array_equal(found, scores[best[channel], channel])
                kept = run.generation.top_maps(layer.name, pooling, channel, slice(None))
                assert np.array_equal(kept, maps[rows, :, :, channel])


def test_all_channels_of_an_image(run: Run) -> None:
    for layer in run.generation.manifest.layers:
        for pooling in layer.poolings:
            expected = oracle.pooled(run.truth[layer.name], run.prefix, pooling)
            for row in range(ROWS):
                found = run.generation.image_scores(layer.name, pooling, row)
                assert np.array_equal(found, expected[row])


def test_a_layer_with_everything_kept(run: Run) -> None:
    layer = "blocks.1.mlp"
    truth = run.truth[layer].astype(np.float16)
    for row in range(ROWS):
        found = run.generation.activations(layer, row, slice(None))
        assert np.array_equal(found, truth[row].T)
    some = np.array([40, 3, 17])
    assert np.array_equal(run.generation.activations(layer, some, 5), truth[some, :, 5])
    with pytest.raises(NotKeptError, match=r"does not keep all activations of blocks\.0\.mlp"):
        run.generation.activations("blocks.0.mlp", 0, 0)


def test_statistics_of_channels(run: Run) -> None:
    for layer in run.generation.manifest.layers:
        for pooling in layer.poolings:
            scores = oracle.pooled(run.truth[layer.name], run.prefix, pooling).astype(np.float64)
            found = run.generation.statistics(layer.name, pooling)
            np.testing.assert_allclose(found.mean, scores.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(found.variance, scores.var(axis=0), rtol=1e-9)
            assert np.array_equal(found.active, (scores > 0).sum(axis=0) / ROWS)
            ordered = np.sort(scores, axis=0)
            # The smallest score that at least the given share of images does not exceed.
            places = [0, 0, 2, 11, 22, 33, 42, 44, 44]
            assert np.array_equal(found.quantiles, ordered[places].T.astype(np.float16))


def test_correlation_of_channels(run: Run) -> None:
    layer = run.generation.manifest.layers[-1]
    scores = oracle.pooled(run.truth[layer.name], run.prefix, "mean").astype(np.float64)
    expected = np.corrcoef(scores.T)
    found = np.stack([run.generation.correlation(layer.name, c) for c in range(layer.channels)])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cls_is_pooled_only_where_there_is_one(run: Run) -> None:
    has_cls = "cls" in run.generation.manifest.layers[0].tokens.prefix
    for layer in run.generation.manifest.layers:
        assert ("cls" in layer.poolings) == has_cls


def test_nearest_images_are_those_of_brute_force(run: Run) -> None:
    layer = run.generation.manifest.layers[-1].name
    vectors = oracle.pooled(run.truth[layer], run.prefix, "mean").astype(np.float64)
    index, kept = run.generation.neighbours(layer), run.generation.image_vectors(layer)
    rows, similarities = neighbours.nearest(index, kept, vectors[3], 5, range(3, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = vectors @ vectors[3]
    expected[3] = -np.inf
    assert rows[0] == 20, "the same picture under another name is nearest"
    np.testing.assert_allclose(similarities, np.sort(expected)[::-1][:5], atol=1e-5)


def test_bad_files_change_nothing_for_the_others(tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.safetensors"
    oracle.save_random_model("test_vit", checkpoint)
    clean = write_pictures(tmp_path / "clean", 20)
    write_pictures(tmp_path / "dirty", 20)
    bad = dict(zip((2, 9, 19), BAD.values(), strict=True))
    for row, data in bad.items():
        (tmp_path / "dirty" / clean[row].relative_to(tmp_path / "clean")).write_bytes(data)
    generations = []
    for name in ("clean", "dirty"):
        out = tmp_path / f"{name}-index"
        options = Options(
            device="cpu",
            model="test_vit",
            data=tmp_path / name,
            out=out,
            weights=Weights(checkpoint),
            batch_size=8,
            top_k=4,
            retain_all=("all",),
        )
        index(options)
        generations.append(open_generation(out))
    first, second = generations
    good = [row for row in range(20) if row not in bad]
    assert np.flatnonzero(~second.rows.valid).tolist() == sorted(bad)
    assert second.manifest.valid_rows == 17
    for row in bad:
        record = second.rows.record(row)
        assert record.reason
        assert record.sha256
        assert second.rows.thumbnail(row) == b""
    for layer in first.manifest.layers:
        for row in bad:
            assert np.isnan(second.image_scores(layer.name, "mean", row)).all()
            assert np.isnan(second.activations(layer.name, row, slice(None))).all()
        for pooling in layer.poolings:
            statistics = second.statistics(layer.name, pooling)
            stacked = [first.image_scores(layer.name, pooling, row) for row in good]
            wide = np.stack(stacked).astype(np.float64)
            np.testing.assert_allclose(statistics.mean, wide.mean(axis=0), rtol=1e-12)
            assert np.array_equal(statistics.quantiles[:, 0], wide.min(axis=0))
            for channel in range(layer.channels):
                found = second.scores(layer.name, pooling, channel)
                assert np.array_equal(found[good], first.scores(layer.name, pooling, channel)[good])
                assert np.isnan(found[list(bad)]).all()
                assert not set(second.top(layer.name, pooling, channel)[0]) & set(bad)


def test_fewer_images_than_ranks(tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "pictures", 3)
    files[1].write_bytes(b"")
    options = Options(
        device="cpu",
        model="test_vit",
        data=tmp_path / "pictures",
        out=tmp_path / "index",
        weights=Weights(random=True),
        top_k=50,
    )
    index(options)
    generation = open_generation(tmp_path / "index")
    rows, scores = generation.top("blocks.0.mlp", "max", 0)
    assert sorted(rows.tolist()) == [0, 2]
    assert len(scores) == 2
