"""Where the cells of a feature grid lie in the model's input.

Followed through strided convolutions and pools by the arithmetic of kernel, stride and padding
(Dumoulin and Visin, "A guide to convolution arithmetic", arXiv 1603.07285).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

STRIDED = (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)

Size: TypeAlias = "tuple[int, int]"
"""Height and width."""

_PADDED_CELLS, _PADDED = 2, 31
"""Cells of a grid, and pixels of a picture, that a model may add for a window or patch to fit."""
_MOST_UNEVEN = 1.25
"""How many times longer than wide cells may be that nothing but their number tells of."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Cells along one axis of the input, in pixels."""

    step: float
    """From one cell to the next."""
    start: float
    """Edge of the first cell: half a step before its centre."""

    def strided(self, size: int, out: int, kernel: int, stride: int, padding: int) -> Axis:
        """After a window of `kernel` cells moved by `stride`, from `size` to `out` cells."""
        if (size + 2 * padding - kernel) // stride + 1 != out:
            # TensorFlow's "same": what is missing is added, the odd cell at the end.
            padding = max((out - 1) * stride + kernel - size, 0) // 2
        centre = self.start + self.step * (kernel / 2 - padding)
        return Axis(self.step * stride, centre - self.step * stride / 2)


Cells: TypeAlias = "tuple[Axis, Axis]"
"""Vertical and horizontal."""


class Grids:
    """The grids of one forward so far, by height and width, the latest last."""

    def __init__(self, input_size: Size) -> None:
        self._input = input_size
        self._known: dict[Size, Cells] = {input_size: (Axis(1.0, 0.0), Axis(1.0, 0.0))}

    def __iter__(self) -> Iterator[Size]:
        """Heights and widths, the latest first, without the picture itself."""
        return (size for size in reversed(self._known) if size != self._input)

    def passed(self, module: nn.Module, size: Size, out: Size) -> None:
        """Note that a convolution or pool made a grid of `out` from one of `size`."""
        before = self.at(size)
        if before is None:
            return
        kernel, stride, padding = _window(module)
        if stride == (1, 1) and size == out:
            return
        self._note(out, tuple(map(Axis.strided, before, size, out, kernel, stride, padding)))

    def at(self, size: Size) -> Cells | None:
        """Cells of a grid; None where `size` is none that the picture could have.

        One that came about without a window is taken for a known one with a few cells added at its
        end, for whole cells of the latest grid that has so many times as many, or for an even one.
        """
        return self._known.get(size) or self._guessed(size)

    def taken(self, size: Size, cells: Cells) -> None:
        """Note that a layer has a grid of `size`."""
        self._known.setdefault(size, cells)

    def _guessed(self, size: Size) -> Cells | None:
        return self._padded(size) or self._merged(size) or self._even(size)

    def _note(self, size: Size, cells: Any) -> None:
        self._known.pop(size, None)
        self._known[size] = cells

    def _padded(self, size: Size) -> Cells | None:
        for known, most in [*((each, _PADDED_CELLS) for each in self), (self._input, _PADDED)]:
            if all(0 <= s - k <= most for s, k in zip(size, known, strict=True)):
                return self._known[known]
        return None

    def _merged(self, size: Size) -> Cells | None:
        for known in self:
            for times in (2, 3, 4):
                if all(-(-k // times) == s for k, s in zip(known, size, strict=True)):
                    return tuple(  # type: ignore[return-value]
                        Axis(axis.step * times, axis.start) for axis in self._known[known]
                    )
        return None

    def _even(self, size: Size) -> Cells | None:
        height, width = (pixels / cells for pixels, cells in zip(self._input, size, strict=True))
        if max(height, width) > _MOST_UNEVEN * min(height, width):
            return None
        return Axis(height, 0.0), Axis(width, 0.0)


def without_rim(module: nn.Module, size: Size) -> Size:
    """The size nearest to `size` of which a convolution's windows leave no pixels at the end.

    That is `size` itself where it is such a size.
    """
    return tuple(map(_whole, size, *_window(module)))  # type: ignore[return-value]


def _whole(size: int, kernel: int, stride: int, padding: int) -> int:
    count = max(0, (size + 2 * padding - kernel) // stride)
    if size <= count * stride + kernel - padding:
        return size
    near = round((size + 2 * padding - kernel) / stride)
    return max(0, near) * stride + kernel - padding


def _window(module: Any) -> tuple[Size, Size, Size]:
    """Kernel (with its dilation), stride and padding of a convolution or pool."""
    kernel, stride = _pair(module.kernel_size), _pair(module.stride)
    dilation = _pair(getattr(module, "dilation", 1))
    # "same" and "valid" come as words; `Axis.strided` finds the first, and the second is 0.
    padding = _pair(0 if isinstance(module.padding, str) else module.padding)
    spread = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    return spread, stride, padding  # type: ignore[return-value]


def _pair(value: Any) -> Size:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
