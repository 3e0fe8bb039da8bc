"""The feed-forward blocks of a model, found by their last projection and watched call by call.

The input of that projection is the hidden activation: after the first projection, the activation
function, any gate and any norm. Ghiasi et al., "What do Vision Transformers Learn?"
(arXiv 2212.06727) find the interpretable features there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeAlias

import torch
from torch import nn

PROJECTIONS = ("fc2", "mlp_out_proj")
"""What timm calls the last projection of a feed-forward block: of its own modules of every kind,
and within blocks that compute attention and feed-forward side by side."""

Call: TypeAlias = "tuple[str, int]"
"""A projection by its (first) path, and which of its calls in a forward, from 0."""

Watch: TypeAlias = Callable[[Call, torch.Tensor], None]


def projections(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """The last projections of a model's feed-forward blocks, with all paths that lead to each.

    Blocks that share their weights (CoaT's parallel ones) are one module under several paths.
    """
    found: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        named = path.rpartition(".")[2] in PROJECTIONS
        if named and isinstance(module, nn.Linear | nn.Conv2d):
            found.setdefault(module, []).append(path)
    return {module: tuple(paths) for module, paths in found.items()}


def layer_name(paths: tuple[str, ...], number: int, calls: int) -> str:
    """Module path of the block that makes call `number` of the `calls` of one projection.

    Each call has a path of its own where the model gives it one; otherwise its number is added.
    """
    block, _, last = paths[number if len(paths) == calls else 0].rpartition(".")
    name = block if last == "fc2" else f"{block}.{last}"
    return name if calls in (1, len(paths)) else f"{name}@{number}"


@contextmanager
def watched(
    model: nn.Module, chosen: Mapping[nn.Module, tuple[str, ...]], watch: Watch
) -> Iterator[None]:
    """While open, every forward of `model` calls `watch(call, input)` before each projection."""
    counts: Counter[str] = Counter()

    def before(path: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        number, counts[path] = counts[path], counts[path] + 1
        watch((path, number), inputs[0])

    with ExitStack() as hooks:
        handle = model.register_forward_pre_hook(lambda *_: counts.clear())
        hooks.callback(handle.remove)
        for module, paths in chosen.items():
            handle = module.register_forward_pre_hook(partial(before, paths[0]))
            hooks.callback(handle.remove)
        yield


def as_tokens(projection: nn.Module, activation: torch.Tensor) -> torch.Tensor:
    """A projection's input as (B, T, C), patches row by row.

    Blocks take (B, T, C), (B, H, W, C) or, where they are convolutions, (B, C, H, W).
    """
    if isinstance(projection, nn.Conv2d):
        return activation.flatten(2).transpose(1, 2)
    return activation.flatten(1, 2) if activation.ndim == 4 else activation
