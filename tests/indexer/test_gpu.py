"""What is made on CUDA against the same on the processor; skipped where there is no device."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import jpeg, noise
from runs import keeping

from vitscope.indexer.reduce import LayerReduction
from vitscope.indexer.run import index
from vitscope.store import layout
from vitscope.store.generation import Generation, open_generation
from vitscope.store.manifest import LayerRecord, Pooling, TokenLayout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

TOKENS = TokenLayout.even(("cls", "reg"), 7, 5, (70, 50))
LAYER = LayerRecord(
    "blocks.0.mlp", 0, 96, TOKENS, TOKENS.poolings, 9, dense=False, dense_prefix=False
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_reduction_on_cuda_is_that_on_the_processor(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    here, there = LayerReduction(LAYER, "cpu"), LayerReduction(LAYER, "cuda")
    for reduction in (here, there):
        reduction.start_unit(64)
    for start in range(0, 64, 16):
        activation = torch.randn(16, TOKENS.tokens, 96, generator=generator).to(dtype)
        valid = torch.rand(16, generator=generator) > 0.1
        here.update(activation, start, valid, start)
        there.update(activation.cuda(), start, valid.cuda(), start)
    taken = [each.take(range(64)) for each in (here, there)]
    assert np.array_equal(taken[0].scores, taken[1].scores, equal_nan=True)
    for mine, theirs in zip(*(each.candidates for each in taken), strict=True):
        assert np.array_equal(mine.keys, theirs.keys)
        assert np.array_equal(mine.maps, theirs.maps)


ROWS = 22
"""Files, good and bad, of the fixture `pictures`."""
POOLINGS: tuple[Pooling, ...] = ("mean", "max", "cls")


@pytest.fixture(scope="module")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Generation]:
    """The same pictures indexed on either device, with everything kept that can be."""
    folder = tmp_path_factory.mktemp("made")
    for device in ("cpu", "cuda"):
        index(replace(keeping(pictures, folder / device), device=device, threads=None))
    return {device: open_generation(folder / device) for device in ("cpu", "cuda")}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_index_made_on_cuda_has_nearly_the_scores_of_the_processor_s(
    made: dict[str, Generation], pooling: Pooling
) -> None:
    for layer in made["cpu"].manifest.layers:
        ours, theirs = (
            made[device].read(layer.name, layout.scores_name(pooling)).astype(np.float32)
            for device in ("cuda", "cpu")
        )
        # cuDNN may embed patches with the ten bits of TF32.
        np.testing.assert_allclose(ours, theirs, atol=0.01 * float(np.nanmax(np.abs(theirs))))
        assert np.isnan(ours).any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_best_that_cuda_keeps_are_those_of_its_own_scores(
    made: dict[str, Generation], pooling: Pooling
) -> None:
    """Brute force in NumPy; maps are the activations where those are kept too."""
    held = made["cuda"]
    for layer in held.manifest.layers:
        for channel in range(0, layer.channels, 5):
            scores = held.scores(layer.name, pooling, channel)
            rows, best = held.top(layer.name, pooling, channel)
            order = np.argsort(-np.nan_to_num(scores.astype(np.float32), nan=-np.inf), stable=True)
            assert rows.tolist() == order[: layer.top_k].tolist()
            assert np.array_equal(best, scores[rows])
            if layer.dense:
                maps = held.top_maps(layer.name, pooling, channel, slice(None))
                prefix = len(layer.tokens.prefix)
                for row, kept in zip(rows, maps, strict=True):
                    whole = held.read(layer.name, layout.ACTIVATIONS, int(row), channel)
                    assert np.array_equal(kept.ravel(), whole[prefix:])


def test_a_run_on_cuda_is_resumed_and_added_to(
    pictures: Path, made: dict[str, Generation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(keeping(pictures, tmp_path / "again"), device="cuda", threads=None)

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitscope.indexer.run.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            index(options)
    index(options)
    held = open_generation(options.out)
    names = [layout.scores_name(pooling) for pooling in POOLINGS]
    for layer in held.manifest.layers:
        for name in names:
            assert np.array_equal(
                held.read(layer.name, name), made["cuda"].read(layer.name, name), equal_nan=True
            )
    more = tmp_path / "more"
    shutil.copytree(pictures, more)
    (more / "zz.jpg").write_bytes(jpeg(noise(99)))
    index(replace(options, data=more, append=True))
    grown = open_generation(options.out)
    assert grown.manifest.rows == ROWS + 1
    for layer in held.manifest.layers:
        scores = grown.read(layer.name, names[0])
        assert np.array_equal(scores[:, :ROWS], held.read(layer.name, names[0]), equal_nan=True)
        assert np.isfinite(scores[:, ROWS]).all()


def test_a_batch_that_cuda_has_no_memory_for_is_run_in_halves(
    pictures: Path,
    made: dict[str, Generation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    update = LayerReduction.update

    def scarce(self: LayerReduction, activation: torch.Tensor, *more: Any) -> None:
        if len(activation) > 2:
            # What CUDA itself raises.
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        update(self, activation, *more)

    monkeypatch.setattr(LayerReduction, "update", scarce)
    options = replace(keeping(pictures, tmp_path / "scarce"), device="cuda", threads=None)
    index(options)
    assert "No memory for 4 images at once: 2 from row 0 on." in capsys.readouterr().err
    held = open_generation(options.out)
    for layer in held.manifest.layers:
        name = layout.scores_name("mean")
        ours, theirs = (
            each.read(layer.name, name).astype(np.float32) for each in (held, made["cuda"])
        )
        np.testing.assert_allclose(ours, theirs, atol=0.01 * float(np.nanmax(np.abs(theirs))))
