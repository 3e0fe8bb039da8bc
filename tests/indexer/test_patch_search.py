"""The index of patches that a run makes of the layers it keeps all of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import write_pictures
from runs import tiny

from vitscope.indexer.run import index
from vitscope.store.generation import open_generation
from vitscope.store.neighbours import nearest

KEPT, OTHER = "blocks.1.mlp", "blocks.0.mlp"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 9)
    (folder / "bad.jpg").write_bytes(b"no picture")
    return folder


def test_nearest_patches_are_those_of_brute_force(pictures: Path, tmp_path: Path) -> None:
    index(tiny(pictures, tmp_path / "index", retain_all=(KEPT,)))
    generation = open_generation(tmp_path / "index")
    manifest = generation.manifest
    assert manifest.patch_recall_at_10 == {KEPT: 1.0}
    assert [layer.name for layer in manifest.layers if layer.patch_search] == [KEPT]
    assert generation.patch_neighbours(OTHER) is None
    tokens = generation.layer(KEPT).tokens
    cells, prefix = tokens.height * tokens.width, len(tokens.prefix)
    truth = {
        int(row) * cells + cell: vector
        for row in np.flatnonzero(generation.rows.valid)
        for cell, vector in enumerate(
            generation.activations(KEPT, int(row), slice(None))[:, prefix:].T.astype(np.float64)
        )
    }
    searched, kept = generation.patch_neighbours(KEPT), generation.patch_vectors(KEPT)
    assert searched is not None
    assert kept.count == len(truth) == 9 * cells
    for own in list(truth)[::7]:
        found, near = nearest(searched, kept, truth[own], 5, range(own, own + 1))
        lengths = {id_: np.linalg.norm(vector) for id_, vector in truth.items()}
        cosines = {
            id_: vector @ truth[own] / (lengths[id_] * lengths[own])
            for id_, vector in truth.items()
            if id_ != own
        }
        expected = sorted(cosines.values(), reverse=True)[:5]
        np.testing.assert_allclose(near, expected, atol=1e-6)
        np.testing.assert_allclose(near, [cosines[id_] for id_ in found.tolist()], atol=1e-6)


def test_it_can_be_left_out(pictures: Path, tmp_path: Path) -> None:
    options = tiny(pictures, tmp_path / "index", retain_all=(KEPT,))
    index(replace(options, patch_search=False))
    generation = open_generation(tmp_path / "index")
    assert generation.manifest.patch_recall_at_10 == {}
    assert generation.patch_neighbours(KEPT) is None
    assert not [name for name in generation.manifest.files if "patches" in name]
    # What is kept is kept.
    assert generation.patch_vectors(KEPT).count


def test_pictures_are_added_beside_directions(pictures: Path, tmp_path: Path) -> None:
    """And are then searched with the others."""
    options = tiny(pictures, tmp_path / "index", retain_all=(KEPT,), batch_size=1)
    index(replace(options, limit=6))
    directions = tmp_path / "index" / "directions" / KEPT
    directions.mkdir(parents=True)
    np.save(directions / "probe.npy", np.ones(3))
    index(replace(options, append=True))
    assert (directions / "probe.npy").exists()
    generation = open_generation(tmp_path / "index")
    searched = generation.patch_neighbours(KEPT)
    assert searched is not None
    tokens = generation.layer(KEPT).tokens
    assert searched._index.ntotal == 9 * tokens.height * tokens.width
