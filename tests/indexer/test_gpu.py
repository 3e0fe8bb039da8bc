"""The CUDA path against the same reduction on the processor; skipped where there is no device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitscope.indexer.reduce import LayerReduction
from vitscope.store.manifest import LayerRecord, TokenLayout

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
