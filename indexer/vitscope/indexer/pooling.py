"""From a layer's activations to one float16 score per image, channel and pooling.

A mean is accumulated in float64 and rounded once, to the float16 nearest to it, so that it does
not depend on the order of summation, the device or the library: brute force in NumPy
(`x.mean(axis=1, dtype=np.float64).astype(np.float16)`) gives the same bits.
"""

from __future__ import annotations

import numpy as np
import torch

from vitscope.store.manifest import Pooling, TokenLayout

HALF_MAX = 65504.0
"""The largest float16. Compiled code (`host`) has it frozen in: change that file with it."""


def pool(activation: torch.Tensor, tokens: TokenLayout, pooling: Pooling) -> torch.Tensor:
    """Scores (B, C) in float64, before rounding, of activations (B, T, C) in any float dtype."""
    if pooling == "cls":
        return activation[:, tokens.prefix.index("cls")].double()
    patches = activation[:, len(tokens.prefix) :]
    if pooling == "max":
        return patches.amax(1).double()
    return _sum(patches) / patches.shape[1]


def _sum(patches: torch.Tensor) -> torch.Tensor:
    if patches.device.type == "cpu":
        # NumPy adds into float64 as it reads: measured 7 times torch's speed, which converts first.
        wide = np.add.reduce(patches.float().numpy(), axis=1, dtype=np.float64)
        return torch.from_numpy(wide)
    return patches.sum(1, dtype=torch.float64)


def round_to_half(wide: torch.Tensor) -> torch.Tensor:
    """The float16 nearest to each float64 value, ties to even; saturates, and -0 becomes 0.

    torch converts float64 to float16 by way of float32 and so rounds twice. Rounding to odd in
    the middle (Boldo and Melquiond, "When double rounding is odd", 2005) makes the detour exact.
    """
    wide = wide.clamp(-HALF_MAX, HALF_MAX)
    narrow = wide.float()
    back = narrow.double()
    # Sign-magnitude bits: subtracting one steps towards zero.
    bits = narrow.view(torch.int32) - (back.abs() > wide.abs()).int()
    odd = bits | (back != wide).int()
    return odd.view(torch.float32).half() + 0.0


def to_half(values: torch.Tensor) -> torch.Tensor:
    """Activations as they are stored: the nearest float16, saturated."""
    # In bfloat16 the bound itself would be rounded up, to what float16 cannot hold.
    return values.float().clamp(-HALF_MAX, HALF_MAX).half()


def saturated(wide: torch.Tensor) -> torch.Tensor:
    """How many values lie beyond the range of float16: () int64."""
    return (wide.abs() > HALF_MAX).sum()
