"""A forward in which tokens do not look at each other, so that each shows its own patch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SOFTMAX = (torch.softmax, torch.Tensor.softmax, torch.special.softmax, functional.softmax)


class Apart(TorchFunctionMode):
    """While open, nothing is mixed among the tokens of one grid.

    Attention of whatever form weighs tokens by a softmax: one that weighs tokens by tokens becomes
    the identity, any other zero. Of a convolution that keeps the grid, the kernel's middle stays.
    What makes a grid of another (patches, strided convolutions, merged neighbours) is as it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention = 0
        """Times that attention was computed."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            self.attention += 1
            named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
            query, value = named["query"], named["value"]
            return query.new_zeros(*query.shape[:-1], value.shape[-1])
        if func is functional.conv2d and len(args) == 7:
            return _unmixed(*args)
        result = func(*args, **kwargs)
        if func in _SOFTMAX:
            self.attention += 1
            return _own(result, kwargs["dim"] if "dim" in kwargs else args[1])
        return result


def _own(weights: torch.Tensor, dim: int) -> torch.Tensor:
    """Attention weights that give every token itself; none where they weigh something else."""
    square = weights.ndim > 1 and weights.shape[-1] == weights.shape[-2]
    if square and dim in (-1, weights.ndim - 1):
        one = torch.eye(weights.shape[-1], device=weights.device, dtype=weights.dtype)
        return one.expand_as(weights)
    return torch.zeros_like(weights)


def _unmixed(
    values: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any, *rest: Any
) -> torch.Tensor:
    """A convolution, with the middle of its kernel alone where it keeps the grid."""
    result = functional.conv2d(values, weight, bias, stride, padding, *rest)
    height, width = weight.shape[2:]
    wide = height * width > 1 and height % 2 and width % 2
    if not wide or result.shape[-2:] != values.shape[-2:]:
        return result
    middle = weight[:, :, height // 2, None, width // 2, None]
    return functional.conv2d(values, middle, bias, 1, 0, 1, rest[-1])
