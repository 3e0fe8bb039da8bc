"""Which rectangle of a source picture the model's input shows, followed step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.data.transforms import CenterCropOrPad, MaybeToTensor, ResizeKeepRatio, TrimBorder
from torchvision import transforms
from torchvision.transforms import functional

from vitscope.indexer.errors import ModelError
from vitscope.store.geometry import Rectangle

Size = tuple[int, int]
"""Width and height in pixels."""


def _centred(step: Any, old: int, new: int) -> int:
    # As torchvision and timm round: padding by half the gap, rounded down, cropping to even.
    return -((new - old) // 2) if new > old else round((old - new) / 2)


def _trimmed(step: Any, old: int, new: int) -> int:
    return min(int(step.border_size), old)


# Steps that keep or resize the whole picture show the same rectangle as before.
_WHOLE = (transforms.Resize, ResizeKeepRatio, MaybeToTensor, transforms.Normalize)
_CUTS: Mapping[type, Callable[[Any, int, int], int]] = {
    transforms.CenterCrop: _centred,
    CenterCropOrPad: _centred,
    TrimBorder: _trimmed,
}
"""Pixels that a step takes away before the first one it keeps; negative where it pads."""


def check_steps(steps: Sequence[Any]) -> None:
    """Raise `ModelError` where a step may move pixels in a way that is not known here."""
    for step in steps:
        # A class derived from a known one may do anything.
        if type(step) not in _WHOLE and type(step) not in _CUTS:
            raise ModelError(
                f"The model cannot be indexed: its transform has the step {type(step).__name__}, "
                "and which pixels of a picture that shows is not known."
            )


def size_of(value: Any) -> Size:
    """Width and height of a PIL image, or of a tensor (…, H, W)."""
    width, height = functional.get_image_size(value)
    return width, height


def after(step: Any, view: Rectangle, old: Size, new: Size) -> Rectangle:
    """What is shown after `step` made a picture of size `new` from one of size `old`.

    `view` is what was shown before, in pixels of the source picture, like the result.
    """
    if type(step) in _WHOLE:
        return view
    x0, y0, x1, y1 = view
    across, down = (x1 - x0) / old[0], (y1 - y0) / old[1]
    cut = _CUTS[type(step)]
    x0 += cut(step, old[0], new[0]) * across
    y0 += cut(step, old[1], new[1]) * down
    return x0, y0, x0 + new[0] * across, y0 + new[1] * down
