"""Trained weights and photographs, where they lie beside the checkout; skipped elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest

from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.run import index
from vitscope.store.generation import Generation, open_generation

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
WEIGHTS = DATA / "weights" / "vit_small_patch14_reg4_dinov2.safetensors"
PICTURES = DATA / "imagenet-sample"
MODEL, SIDE, PREFIX = "vit_small_patch14_reg4_dinov2", 224, 5
COUNT, BATCH, K = 200, 32, 20

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="no trained weights beside the checkout"),
]


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    out = tmp_path_factory.mktemp("real") / "index"
    index(
        Options(
            device="cpu",
            model=MODEL,
            data=PICTURES,
            out=out,
            weights=Weights(WEIGHTS),
            img_size=(SIDE, SIDE),
            limit=COUNT,
            batch_size=BATCH,
            top_k=K,
        )
    )
    return open_generation(out)


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str], oracle.Halves]:
    """Brute-force scores (N, C) by layer and pooling."""
    files = sorted(PICTURES.iterdir())[:COUNT]
    model = oracle.load(MODEL, WEIGHTS, img_size=SIDE)
    parts: dict[tuple[str, str], list[oracle.Halves]] = {}
    for batch in oracle.activations(model, files, BATCH, side=SIDE):
        for layer, values in batch.items():
            for pooling in ("mean", "max", "cls"):
                parts.setdefault((layer, pooling), []).append(
                    oracle.pooled(values, PREFIX, pooling)
                )
    return {key: np.concatenate(each) for key, each in parts.items()}


def test_the_top_20_of_every_channel_is_that_of_brute_force(
    generation: Generation, scores: dict[tuple[str, str], oracle.Halves]
) -> None:
    compared = 0
    for layer in generation.manifest.layers:
        for pooling in layer.poolings:
            truth = scores[layer.name, pooling]
            best = oracle.best(truth, K)
            for channel in range(layer.channels):
                rows, found = generation.top(layer.name, pooling, channel)
                assert np.array_equal(rows, best[channel])
                assert np.array_equal(found, truth[best[channel], channel])
                compared += 1
    assert compared == 12 * 3 * 1536


def test_every_score_is_that_of_brute_force(
    generation: Generation, scores: dict[tuple[str, str], oracle.Halves]
) -> None:
    for layer in generation.manifest.layers:
        for pooling in layer.poolings:
            truth = scores[layer.name, pooling]
            for channel in range(0, layer.channels, 7):
                found = generation.scores(layer.name, pooling, channel)
                assert np.array_equal(found, truth[:, channel])
