"""The compiled reduction against the same reduction by PyTorch, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.indexer.reduce import LayerReduction
from vitscope.store.manifest import LayerRecord, TokenLayout

ODD = (0.0, -0.0, 1e-8, -3e-8, 6.1e-5, 65504.0, 65519.9, 65520.0, -7e4, 3e38, np.inf, -np.inf)
"""Values about the edges of float16: its least, its subnormals, its largest."""


@st.composite
def batches(draw: st.DrawFn) -> tuple[LayerRecord, list[torch.Tensor], list[torch.Tensor]]:
    prefix = draw(st.sampled_from([(), ("cls",), ("cls", "dist"), ("reg", "reg")]))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    tokens = TokenLayout.even(prefix, height, width, (8 * height, 8 * width))
    channels = draw(st.sampled_from([1, 3, 16, 130, 300]))
    kept = draw(st.integers(1, 9))
    layer = LayerRecord("mlp", 0, channels, tokens, tokens.poolings, kept, False, False)
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    odd = draw(st.sampled_from([0.0, 0.05, 0.9]))
    levels = draw(st.sampled_from([0, 3]))
    values, valid = [], []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.integers(1, 6)), tokens.tokens, channels
        some = chance.normal(0, 10.0 ** chance.integers(-6, 4), shape).astype(np.float32)
        if levels:
            # Few distinct values: ties everywhere.
            some = chance.integers(-levels, levels, shape).astype(np.float32)
        places = chance.random(shape) < odd
        some[places] = chance.choice(np.array([*ODD, np.nan], np.float32), int(places.sum()))
        values.append(torch.from_numpy(some))
        valid.append(torch.from_numpy(chance.random(shape[0]) < 0.8))
    return layer, values, valid


@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce")
@settings(max_examples=150, deadline=None)
@given(batches(), st.integers(1, 5))
def test_compiled_code_gives_the_bits_of_pytorch(
    case: tuple[LayerRecord, list[torch.Tensor], list[torch.Tensor]], threads: int
) -> None:
    layer, values, valid = case
    rows = sum(map(len, values))
    with ThreadPoolExecutor(4) as pool:
        mine = LayerReduction(layer, "cpu", pool=pool, threads=threads)
        theirs = LayerReduction(layer, "cpu", compiled=False)
        for reduction in (mine, theirs):
            reduction.start_unit(rows)
            row = 0
            for some, which in zip(values, valid, strict=True):
                reduction.update(some, 1000 + row, which, row)
                row += len(some)
    assert mine.saturated == theirs.saturated
    for pooling in layer.poolings:
        assert bits(mine.scores(pooling)).tolist() == bits(theirs.scores(pooling)).tolist()
        found, expected = (each.candidates(pooling, 0, 2000) for each in (mine, theirs))
        assert np.array_equal(found.keys, expected.keys)
        assert np.array_equal(bits(found.maps), bits(expected.maps))


def bits(values: npt.NDArray[np.float16]) -> npt.NDArray[np.int16]:
    """Every NaN as the same one."""
    return np.where(np.isnan(values), np.float16(np.nan), values).view(np.int16)


def test_activations_with_gaps_or_in_half_are_reduced_as_they_are() -> None:
    tokens = TokenLayout.even((), 4, 3, (32, 24))
    layer = LayerRecord("mlp", 0, 70, tokens, tokens.poolings, 2, False, False)
    values = torch.randn(3, 70, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    reductions = [LayerReduction(layer, "cpu", compiled=each) for each in (True, False)]
    for reduction in reductions:
        reduction.start_unit(3)
        reduction.update(values.transpose(1, 2), 0, torch.ones(3, dtype=torch.bool), 0)
    for pooling in layer.poolings:
        mine, theirs = (each.scores(pooling) for each in reductions)
        assert np.array_equal(mine, theirs)
