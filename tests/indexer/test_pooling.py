"""Pooling and rounding against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitscope.indexer.pooling import HALF_MAX, pool, round_to_half, saturated
from vitscope.store.manifest import TokenLayout

TOKENS = TokenLayout.even(("cls", "reg"), 3, 5, (30, 50))


def random_activations(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(4, TOKENS.tokens, 11, generator=generator) * 3).to(dtype)


@given(st.floats(-HALF_MAX, HALF_MAX))
def test_rounds_once_like_numpy(value: float) -> None:
    rounded = round_to_half(torch.tensor([value], dtype=torch.float64)).numpy()
    assert rounded[0] == np.float64(value).astype(np.float16)


@given(st.integers(0x0001, 0x7BFE), st.sampled_from([-1, 0, 1]), st.booleans())
def test_rounds_the_middle_between_two_halves_like_numpy(
    bits: int, nudge: int, negative: bool
) -> None:
    low, high = np.array([bits, bits + 1], np.uint16).view(np.float16).astype(np.float64)
    value = math.nextafter((low + high) / 2, nudge * math.inf) if nudge else (low + high) / 2
    value = -value if negative else value
    rounded = round_to_half(torch.tensor([value], dtype=torch.float64)).numpy()
    assert rounded[0] == np.float64(value).astype(np.float16)


def test_negative_zero_becomes_zero_and_nan_stays() -> None:
    rounded = round_to_half(torch.tensor([-0.0, -1e-12, math.nan], dtype=torch.float64)).numpy()
    assert not np.signbit(rounded[:2]).any()
    assert np.isnan(rounded[2])


def test_saturates_and_counts_what_float16_cannot_hold() -> None:
    wide = torch.tensor([1e5, -1e9, 65504.0, math.inf, math.nan, 1.0], dtype=torch.float64)
    assert round_to_half(wide).tolist()[:4] == [65504.0, -65504.0, 65504.0, 65504.0]
    assert saturated(wide) == 3


@pytest.mark.parametrize("seed", range(5))
def test_pools_patches_only(seed: int) -> None:
    values = random_activations(seed)
    array = values.numpy()
    mean = round_to_half(pool(values, TOKENS, "mean")).numpy()
    assert np.array_equal(mean, array[:, 2:].mean(axis=1, dtype=np.float64).astype(np.float16))
    assert np.array_equal(pool(values, TOKENS, "max").numpy(), array[:, 2:].max(axis=1))
    assert np.array_equal(pool(values, TOKENS, "cls").numpy(), array[:, 0])


def test_prefix_tokens_do_not_leak_into_patch_poolings() -> None:
    values = random_activations(0)
    changed = values.clone()
    changed[:, :2] = 1e6
    for pooling in ("mean", "max"):
        assert torch.equal(pool(values, TOKENS, pooling), pool(changed, TOKENS, pooling))


def test_bfloat16_activations_are_pooled_exactly() -> None:
    values = random_activations(1, torch.bfloat16)
    mean = pool(values, TOKENS, "mean").numpy()
    assert np.array_equal(mean, values.double().numpy()[:, 2:].sum(axis=1) / 15)
