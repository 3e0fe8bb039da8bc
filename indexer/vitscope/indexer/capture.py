"""Capturing the hidden activations of every layer in one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from vitscope.indexer.blocks import Call, as_tokens, projections, watched
from vitscope.indexer.layers import CapturedLayer

Sink = Callable[[int, torch.Tensor], None]


@contextmanager
def capture(model: nn.Module, layers: Sequence[CapturedLayer], sink: Sink) -> Iterator[None]:
    """While open, every forward calls `sink(layer number, activations (B, T, C))` per layer.

    The tensor is the model's own, valid during the call and not to be written to.
    """
    numbers = {layer.call: number for number, layer in enumerate(layers)}
    wanted = {path for path, _ in numbers}
    chosen = {module: paths for module, paths in projections(model).items() if paths[0] in wanted}
    by_path = {paths[0]: module for module, paths in chosen.items()}

    def watch(call: Call, activation: torch.Tensor) -> None:
        if (number := numbers.get(call)) is not None:
            sink(number, as_tokens(by_path[call[0]], activation))

    with watched(model, chosen, watch):
        yield
