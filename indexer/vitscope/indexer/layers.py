"""The layers of a model: its feed-forward blocks in the order of execution, with their tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from vitscope.indexer.blocks import Call, layer_name
from vitscope.indexer.errors import ModelError
from vitscope.indexer.grids import Size, without_rim
from vitscope.indexer.memory import ended_for_want_of_memory
from vitscope.indexer.probe import ContradictedError, Probe
from vitscope.indexer.trace import Trace, trace
from vitscope.store.manifest import TokenLayout


@dataclass(frozen=True, slots=True)
class CapturedLayer:
    """A feed-forward block whose activations a forward delivers."""

    name: str
    """Module path of the block."""
    channels: int
    """Hidden width."""
    tokens: TokenLayout
    """What the T axis of the activations (B, T, C) means."""
    call: Call
    """Its projection, and which of the projection's calls in a forward it is."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A block that is no layer of an index."""

    name: str
    why: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.name} is no layer of the index: {self.why}."


def find_layers(
    model: nn.Module, name: str, input_size: Size
) -> tuple[list[CapturedLayer], list[LeftOut]]:
    """The model's layers, their tokens read from a forward and held against a probe.

    Blocks that see no patches are left out and given beside them.

    The probe (`vitscope.indexer.probe`) takes float32 parameters. Raises `ModelError`, which says
    why, where the model cannot be indexed.
    """
    probe = Probe(model, input_size)
    found = _traced(model, name, input_size, probe.trace)
    shaped, left_out = _layers(found, name)
    layers = []
    for layer in shaped:
        try:
            layers.append(replace(layer, tokens=probe.placed(layer.call, layer.tokens)))
        except ContradictedError as error:
            raise _refused(name, f"in {layer.name} {error}") from None
    try:
        probe.check_prefix({layer.call: layer.tokens for layer in layers})
    except ContradictedError as error:
        raise _refused(name, str(error)) from None
    return layers, left_out


def declared_layers(
    model: nn.Module, name: str, input_size: Size
) -> tuple[list[CapturedLayer], list[LeftOut]]:
    """The layers by the shapes of a forward alone, and the blocks left out.

    Works without weights, on torch's `meta` device. Raises `ModelError` as `find_layers` does, but
    for what only a probe can tell.
    """
    device = next(model.parameters()).device
    # Three pictures, so that a block that folds something into the batch is noticed.
    pictures = torch.zeros(3, 3, *input_size, device=device)
    return _layers(_traced(model, name, input_size, lambda: trace(model, pictures)), name)


def _traced(model: nn.Module, name: str, input_size: Size, forward: Callable[[], Trace]) -> Trace:
    _check_rim(model, name, input_size)
    try:
        found = forward()
    # Whatever a model raises on a size that it cannot take.
    except Exception as error:
        if ended_for_want_of_memory(error):
            raise _refused(
                name,
                f"memory does not suffice for a forward of {_pixels(input_size)} pixels; give a "
                "smaller --img-size or another --device",
            ) from error
        what = str(error).strip().splitlines() or [repr(error)]
        why = what[0].partition(". ")[0].rstrip(".")
        raise _refused(
            name,
            f"a forward of {_pixels(input_size)} pixels fails ({why}); give another --img-size",
        ) from error
    if not found.calls:
        raise _refused(
            name, "it has no transformer feed-forward blocks with a last projection (fc2)"
        )
    if not found.attention:
        raise _refused(name, "its forward computes no attention, so that it is no transformer")
    return found


def _check_rim(model: nn.Module, name: str, input_size: Size) -> None:
    """Refuse a size of which patches leave a rim, unless it is the model's own.

    SigLIP's so400m was trained so: it sees patches of 14 pixels in 384.
    """
    own = tuple(getattr(model, "pretrained_cfg", {}).get("input_size", ())[1:])
    patches = next((each for each in model.modules() if isinstance(each, nn.Conv2d)), None)
    # Other kinds of convolution pad in their forward what is missing.
    if type(patches) is not nn.Conv2d or input_size == own:
        return
    if (whole := without_rim(patches, input_size)) != input_size:
        raise ModelError(
            f"{name} cannot be indexed at {_pixels(input_size)} pixels: its patches of "
            f"{patches.kernel_size[0]} pixels would leave a rim; give an --img-size such as "
            f"{_pixels(whole)}."
        )


def _layers(found: Trace, name: str) -> tuple[list[CapturedLayer], list[LeftOut]]:
    times = Counter(seen.call[0] for seen in found.calls)
    layers, left_out = [], []
    for seen in found.calls:
        layer = layer_name(seen.paths, seen.call[1], times[seen.call[0]])
        if seen.tokens:
            layers.append(CapturedLayer(layer, seen.channels, seen.tokens, seen.call))
        else:
            left_out.append(LeftOut(layer, seen.why))
    if not layers:
        raise _refused(name, f"in {left_out[0].name} {left_out[0].why}")
    return layers, left_out


def _refused(name: str, why: str) -> ModelError:
    return ModelError(f"{name} cannot be indexed: {why}.")


def _pixels(size: Size) -> str:
    """`224` or `192x256`, as --img-size takes it."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
