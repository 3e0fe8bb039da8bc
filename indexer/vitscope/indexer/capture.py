"""Capturing the hidden activations of every feed-forward block in one forward.

A pre-hook on a block's last projection (`fc2`) sees its input: after the first projection, the
activation function, any gate and any norm. Ghiasi et al., "What do Vision Transformers Learn?"
(arXiv 2212.06727) find the interpretable features there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitscope.indexer.errors import ModelError
from vitscope.store.manifest import TokenLayout

Sink = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class CapturedLayer:
    """A feed-forward block whose activations a forward delivers."""

    name: str
    """Module path of the block."""
    channels: int
    """Hidden width."""
    tokens: TokenLayout
    """What the T axis of the activations (B, T, C) means."""


def find_layers(model: nn.Module, name: str, input_size: tuple[int, int]) -> list[CapturedLayer]:
    """The model's feed-forward blocks in the order of execution, from one probe forward.

    Blocks that see anything but the model's tokens (a pooling head's, say) are left out. Raises
    `ModelError` where the model is no plain vision transformer or the probe contradicts its layout.
    """
    layout = token_layout(model, name, input_size)
    _check_size(model, name, input_size)
    seen: list[tuple[str, torch.Size]] = []

    def note(path: str, activation: torch.Tensor) -> None:
        seen.append((path, activation.shape))

    blocks = _blocks(model)
    parameter = next(model.parameters())
    with _hooks(blocks, note), torch.inference_mode():
        model(torch.zeros(1, 3, *input_size, device=parameter.device, dtype=parameter.dtype))
    layers = [
        CapturedLayer(path, shape[2], layout)
        for path, shape in seen
        if len(shape) == 3 and shape[1] == layout.tokens
    ]
    names = [layer.name for layer in layers]
    depth = len(getattr(model, "blocks", ()))
    if len(names) != depth or len(set(names)) != depth:
        raise ModelError(
            f"{name} cannot be indexed: {len(names)} of its {depth} blocks showed "
            f"{layout.tokens} tokens to a feed-forward block in a probe forward."
        )
    return layers


def token_layout(model: nn.Module, name: str, input_size: tuple[int, int]) -> TokenLayout:
    """Prefix tokens and patch grid as the model itself declares them."""
    if not _blocks(model):
        raise ModelError(f"{name} cannot be indexed: it has no transformer feed-forward blocks.")
    if not isinstance(model, VisionTransformer):
        raise ModelError(
            f"{name} cannot be indexed: {type(model).__name__} is not among the plain vision "
            "transformers (ViT, DeiT, CLIP, DINOv2) whose token layout vitscope knows."
        )
    prefix = ["cls"] if model.cls_token is not None else []
    prefix += ["dist"] if getattr(model, "dist_token", None) is not None else []
    prefix += ["reg"] * int(model.num_reg_tokens)
    if len(prefix) != model.num_prefix_tokens:
        raise ModelError(
            f"{name} cannot be indexed: it has {model.num_prefix_tokens} prefix tokens, of which "
            f"{len(prefix)} could be named."
        )
    height, width = model.patch_embed.grid_size
    return TokenLayout.even(tuple(prefix), int(height), int(width), input_size)


def _check_size(model: nn.Module, name: str, input_size: tuple[int, int]) -> None:
    embed: Any = model.patch_embed
    for pixels, patch in zip(input_size, embed.feat_ratio(as_scalar=False), strict=True):
        if pixels % patch:
            raise ModelError(
                f"{name} cannot be indexed at {pixels} pixels: its patches of {patch} pixels would "
                f"leave a rim; give an --img-size such as {max(1, round(pixels / patch)) * patch}."
            )


@contextmanager
def capture(model: nn.Module, layers: Sequence[CapturedLayer], sink: Sink) -> Iterator[None]:
    """While open, every forward calls `sink(layer number, activations (B, T, C))` per layer.

    The tensor is the model's own, valid during the call and not to be written to.
    """
    numbers = {layer.name: number for number, layer in enumerate(layers)}
    blocks = {path: block for path, block in _blocks(model).items() if path in numbers}
    with _hooks(blocks, lambda path, activation: sink(numbers[path], activation)):
        yield


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with an `fc2` projection, by path."""
    return {
        path: block
        for path, block in model.named_modules()
        if isinstance(getattr(block, "fc2", None), nn.Linear)
    }


@contextmanager
def _hooks(
    blocks: dict[str, nn.Module], call: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    def hook(path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _, inputs: call(path, inputs[0])

    handles = []
    for path, block in blocks.items():
        projection = block.get_submodule("fc2")
        handles.append(projection.register_forward_pre_hook(hook(path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
