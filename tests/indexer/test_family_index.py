"""Hierarchical and late-token models indexed end to end, held against plain PyTorch hooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import timm
import torch
from pictures import jpeg, noise
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.run import index
from vitscope.store.generation import Generation, open_generation

ROWS, BATCH, UNIT, K = 5, 2, 4, 3

MODELS = [
    # name, input size, and the prefix tokens of the first and of the last layer
    ("coat_tiny", (64, 96), (1, 1)),
    ("pit_ti_distilled_224", (96, 64), (2, 2)),
    ("convit_tiny", (64, 64), (0, 1)),
    ("swin_tiny_patch4_window7_224", (64, 96), (0, 0)),
    ("twins_svt_small", (64, 96), (0, 0)),
    ("tiny_vit_5m_224", (64, 96), (0, 0)),
    ("vit_small_plus_patch16_dinov3", (64, 96), (5, 5)),
]


@dataclass(frozen=True)
class Run:
    generation: Generation
    truth: list[oracle.Floats]
    """Inputs (N, T, C) of every `fc2`, in the order of the calls."""
    prefix: tuple[int, int]


@pytest.fixture(scope="module", params=MODELS, ids=lambda row: row[0])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    name, size, prefix = request.param
    folder = tmp_path_factory.mktemp(name)
    (folder / "pictures").mkdir()
    files = [folder / "pictures" / f"{number}.jpg" for number in range(ROWS)]
    for number, file in enumerate(files):
        file.write_bytes(jpeg(noise(number, 80, 90 + 7 * number)))
    index(
        Options(
            device="cpu",
            model=name,
            data=folder / "pictures",
            out=folder / "index",
            weights=Weights(random=True),
            img_size=size,
            top_k=K,
            batch_size=BATCH,
            unit_rows=UNIT,
            threads=1,
            retain_all=("all",),
        )
    )
    return Run(open_generation(folder / "index"), inputs_of_fc2(name, size, files), prefix)


def inputs_of_fc2(name: str, size: tuple[int, int], files: list[Path]) -> list[oracle.Floats]:
    torch.manual_seed(0)
    sized: dict[str, Any] = {} if name.startswith("tiny_vit") else {"img_size": size}
    model = timm.create_model(name, num_classes=0, **sized).eval()
    # As it matters to torch: it takes other kernels for PiT's pooling where weights have gradients.
    model.requires_grad_(False)
    config = resolve_model_data_config(  # type: ignore[no-untyped-call]
        model, args={"input_size": (3, *size)}
    )
    transform: Any = create_transform(**config, is_training=False)
    calls: list[oracle.Floats] = []
    for path, module in model.named_modules():
        if path.endswith(".fc2"):
            module.register_forward_pre_hook(
                lambda _, inputs: calls.append(inputs[0].detach().numpy().copy())
            )
    batches = []
    # Batches start anew with every unit.
    for unit in (files[:UNIT], files[UNIT:]):
        for start in range(0, len(unit), BATCH):
            batch = unit[start : start + BATCH]
            calls.clear()
            with torch.no_grad():
                model(torch.stack([transform(Image.open(each).convert("RGB")) for each in batch]))
            batches.append(list(calls))
    return [np.concatenate(each) for each in zip(*batches, strict=True)]


def test_everything_equals_brute_force(run: Run) -> None:
    layers = run.generation.manifest.layers
    assert len(layers) == len(run.truth)
    assert tuple(len(layers[n].tokens.prefix) for n in (0, -1)) == run.prefix
    for layer, truth in zip(layers, run.truth, strict=True):
        tokens = layer.tokens
        prefix = len(tokens.prefix)
        assert truth.shape == (ROWS, tokens.tokens, layer.channels)
        assert ("cls" in layer.poolings) == (prefix > 0)
        halves = truth.astype(np.float16)
        maps = halves[:, prefix:].reshape(ROWS, tokens.height, tokens.width, layer.channels)
        for row in range(ROWS):
            assert np.array_equal(
                run.generation.activations(layer.name, row, slice(None)), halves[row].T
            )
        for pooling in layer.poolings:
            scores = oracle.pooled(truth, prefix, pooling)
            best = oracle.best(scores, K)
            for channel in range(0, layer.channels, 7):
                found = run.generation.scores(layer.name, pooling, channel)
                assert np.array_equal(found, scores[:, channel])
                rows, top = run.generation.top(layer.name, pooling, channel)
                assert np.array_equal(rows, best[channel])
                assert np.array_equal(top, scores[best[channel], channel])
                kept = run.generation.top_maps(layer.name, pooling, channel, slice(None))
                assert np.array_equal(kept, maps[rows, :, :, channel])
