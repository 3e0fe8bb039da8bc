"""A probe of the model itself: every token lies where its layout says, every prefix token is so.

Tokens are kept apart (`vitscope.indexer.apart`), so that each depends on its own patch and, through
convolutions that make grids, on a little around it. Noise n is laid over a picture, then n scaled
by the row, then by the column: the changes of an activation under the latter two are those under n
times where its patch lies, so that a least-squares fit over its channels gives the centre of what
it sees, in one forward for all tokens of all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from vitscope.indexer.blocks import Call
from vitscope.indexer.grids import Size
from vitscope.indexer.trace import Trace, tokens_of, trace
from vitscope.store.manifest import TokenLayout

_DRAWS = 2
"""Of noise; the centre's error falls with the root of draws times channels."""
_NOISE = 0.01
"""Its standard deviation beside 1 of the picture's: small, so that changes are linear."""
_UNMOVED = 1e-5
"""Share of the largest change below which a token did not change."""
_MARKS = 4
_SHIFT = 0.25
"""Cells by which measured centres lie beside the arithmetic of strides before they are believed
more: where paths of other strides meet (a ResNet's shortcuts), one path's is not the truth."""
_FURTHEST = 0.9
"""Cells that centres may be off: overlapping windows take up to 0.7, a neighbour's place 1."""
_DRIFT = 0.4
"""Cells by which a wrong cell size may move centres from one end of a grid to the other."""
_SHARE = 0.97
"""Of the patches that must be within; deep convolutional stems leave strays."""
_SPREAD = 0.5
"""And the root of the mean square of all."""


class ContradictedError(Exception):
    """A model's tokens are not what its layout says; the message says how."""


@dataclass(slots=True)
class _Centres:
    """What the tokens of one call see."""

    change: torch.Tensor
    """Power (T,) of the change under plain noise."""
    y: torch.Tensor
    """Centre (T,) in pixels of the input from its top."""
    x: torch.Tensor
    """And from its left."""


class Probe:
    """Pictures to trace a model with, and what its tokens made of them."""

    def __init__(self, model: nn.Module, input_size: Size) -> None:
        parameter = next(model.parameters())
        self._model = model
        self._size = input_size
        self._centres: dict[Call, _Centres] = {}
        chance = torch.Generator().manual_seed(0)
        self._base = torch.randn(1, 3, *input_size, generator=chance)
        noise = _NOISE * torch.randn(_DRAWS, 3, *input_size, generator=chance)
        rows, columns = (torch.linspace(-1, 1, size) for size in input_size)
        changes = torch.cat([noise, noise * rows[:, None], noise * columns])
        self._pictures = torch.cat([self._base, self._base + changes]).to(parameter.device)
        self._base = self._base.to(parameter.device)

    def trace(self) -> Trace:
        """Trace the model over the probe's pictures."""
        self._centres.clear()
        return trace(self._model, self._pictures, self._observe)

    def _observe(self, call: Call, tokens: torch.Tensor) -> None:
        changes = tokens[1:] - tokens[:1]
        plain, by_row, by_column = changes.view(3, _DRAWS, *changes.shape[1:])  # [D, T, C]
        power = plain.square().sum((0, 2))
        height, width = self._size
        y, x = (
            ((plain * scaled).sum((0, 2)) / power + 1) * (size - 1) / 2 + 0.5
            for scaled, size in ((by_row, height), (by_column, width))
        )
        self._centres[call] = _Centres(power.cpu(), y.cpu(), x.cpu())

    def placed(self, call: Call, tokens: TokenLayout) -> TokenLayout:
        """The layout of a call's tokens, moved to where they are; raises `ContradictedError`."""
        centres = self._centres[call]
        prefix = len(tokens.prefix)
        moved = centres.change > _UNMOVED**2 * centres.change.max()
        if bool(moved[:prefix].any()):
            raise ContradictedError("tokens that should be no patches change with the picture")
        if not bool(moved[prefix:].all()):
            raise ContradictedError("tokens that should be patches do not change with the picture")
        return _placed(torch.stack([centres.y[prefix:], centres.x[prefix:]]).double(), tokens)

    def check_prefix(self, layers: Mapping[Call, TokenLayout]) -> None:
        """Raise `ContradictedError` where another value of a token's parameter moves other tokens.

        It must move those of its name, and in no layer anything else.
        """
        if not any(tokens.prefix for tokens in layers.values()):
            return
        rest = self._marks({})
        unmoved = {call: set(range(len(tokens.prefix))) for call, tokens in layers.items()}
        for name, parameter in self._model.named_parameters():
            if not (names := tokens_of(name, parameter)):
                continue
            moved = self._marks({name: parameter + self._other(parameter)})
            for call, tokens in layers.items():
                changes = (moved[call] - rest[call]).square().sum(1)  # [T]
                enough = _UNMOVED**2 * rest[call].square().sum(1).mean()
                found = set((changes > enough).nonzero()[:, 0].tolist())
                named = {place for place, each in enumerate(tokens.prefix) if each in names}
                # Each scale has a class token of its own, which the scales before it do not see.
                if found and found != named:
                    raise ContradictedError(
                        f"its parameter {name} moves other tokens than the {names[0]} token"
                    )
                unmoved[call] -= found
        if any(unmoved.values()):
            raise ContradictedError("no parameter moves its prefix tokens")

    @staticmethod
    def _other(parameter: torch.Tensor) -> torch.Tensor:
        """Noise of the size of a parameter, and more; norms would take out a constant."""
        chance = torch.Generator().manual_seed(1)
        noise = torch.randn(parameter.shape, generator=chance).to(parameter)
        return noise * (parameter.abs().mean() + 1)

    def _marks(self, changed: Mapping[str, torch.Tensor]) -> dict[Call, torch.Tensor]:
        """A few random sums (T, M) of every token's activation, with other values of parameters."""
        marks: dict[Call, torch.Tensor] = {}

        def observe(call: Call, tokens: torch.Tensor) -> None:
            chance = torch.Generator().manual_seed(0)
            weights = torch.randn(tokens.shape[2], _MARKS, generator=chance).to(tokens)
            marks[call] = tokens[0] @ weights

        trace(self._model, self._base, observe, changed)
        return marks


def _placed(measured: torch.Tensor, tokens: TokenLayout) -> TokenLayout:
    """The layout whose patches lie at the centres (2, H * W), in pixels."""
    cell = torch.tensor([[tokens.cell_height], [tokens.cell_width]]).double()
    corner = torch.tensor([[tokens.top], [tokens.left]]).double()
    grid = torch.cartesian_prod(torch.arange(tokens.height), torch.arange(tokens.width)).T
    off = (measured - corner) / cell - 0.5 - grid  # [2, H * W], in cells
    shift = off.mean(1, keepdim=True)
    if float(shift.abs().max()) < _SHIFT:
        shift = torch.zeros_like(shift)
    off = off - shift
    furthest = float(off.abs().amax(0).quantile(_SHARE))
    spread = float(off.square().mean().sqrt())
    if furthest > _FURTHEST or spread > _SPREAD or float(shift.abs().max()) >= 1:
        raise ContradictedError(
            "a probe finds its tokens elsewhere than in the order of a "
            f"{tokens.height} x {tokens.width} grid"
        )
    if _drift(off.view(2, tokens.height, tokens.width)) > _DRIFT:
        raise ContradictedError(
            f"a probe finds the patches of its {tokens.height} x {tokens.width} grid to be of "
            "another size than the strides of the model make them"
        )
    if not shift.any():
        return tokens
    # To half pixels, so that it does not depend on the last bits of a forward.
    corner = torch.round(2 * (corner + shift * cell)) / 2
    return replace(tokens, top=float(corner[0]), left=float(corner[1]))


def _drift(off: torch.Tensor) -> float:
    """How far a straight line through offsets (2, H, W) goes from one end to the other, in cells.

    Outermost patches see less than others and do not count.
    """
    worst = 0.0
    for each in (off[0].mean(1), off[1].mean(0)):
        inner = each[1:-1]
        if len(inner) < 4:
            continue
        place = torch.arange(len(inner)).double() - (len(inner) - 1) / 2
        slope = float((place * inner).sum() / place.square().sum())
        worst = max(worst, abs(slope) * (len(inner) - 1))
    return worst
