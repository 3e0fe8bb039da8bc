"""One forward looked at: which blocks it calls in which order, and what their tokens are.

A layer's grid is read from the shapes that the forward itself goes through: the picture-shaped
inputs of the modules around the block, and the strided convolutions before it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from vitscope.indexer.apart import Apart
from vitscope.indexer.blocks import Call, as_tokens, projections, watched
from vitscope.indexer.grids import STRIDED, Cells, Grids, Size
from vitscope.store.manifest import TokenLayout

Observe = Callable[[Call, torch.Tensor], None]

_TOKEN_PARAMETER = re.compile(r"(?:^|[._])(cls|dist|reg)_token(?:_?\d+)?$")


@dataclass(frozen=True, slots=True)
class Seen:
    """One call of a feed-forward block."""

    call: Call
    paths: tuple[str, ...]
    """All paths of its projection."""
    channels: int
    tokens: TokenLayout | None
    """None where it sees no patches of the picture."""
    why: str
    """Why there is no layout; empty where there is one."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What a forward did."""

    calls: tuple[Seen, ...]
    """In the order of execution."""
    attention: int
    """Times that attention was computed."""


def prefix_tokens(model: nn.Module) -> tuple[str, ...]:
    """The prefix tokens that a model's parameters make, in timm's order: `cls`, `dist`, `reg`."""
    count = {"cls": 0, "dist": 0, "reg": 0}
    for name, parameter in model.named_parameters():
        # Models with several scales have a class token for each.
        for token, times in Counter(tokens_of(name, parameter)).items():
            count[token] = max(count[token], times)
    return tuple(name for name, times in count.items() for _ in range(times))


def tokens_of(name: str, parameter: torch.Tensor) -> tuple[str, ...]:
    """The prefix tokens that begin as a parameter (..., tokens, C); none of any other parameter.

    A second token in the class token's parameter is the distillation token, as in PiT.
    """
    match = _TOKEN_PARAMETER.search(name)
    if not match:
        return ()
    tokens = parameter.shape[-2] if parameter.ndim > 1 else 1
    return ("cls", "dist") if (match[1], tokens) == ("cls", 2) else (match[1],) * tokens


def trace(
    model: nn.Module,
    pictures: torch.Tensor,
    observe: Observe = lambda call, tokens: None,
    changed: Mapping[str, torch.Tensor] | None = None,
) -> Trace:
    """Run `model` on pictures (B, 3, H, W), tokens kept apart, and see what is called.

    `observe(call, activations (B, T, C))` is told of every call that sees patches; `changed` are
    other values of parameters, by name.
    """
    tracer = _Tracer(model, pictures, observe)
    with tracer.looking(), torch.inference_mode(), Apart() as apart:
        functional_call(model, dict(changed or {}), (pictures,))
    return Trace(tuple(tracer.calls), apart.attention)


class _Tracer:
    def __init__(self, model: nn.Module, pictures: torch.Tensor, observe: Observe) -> None:
        self.calls: list[Seen] = []
        self.grids = Grids((pictures.shape[2], pictures.shape[3]))
        self._model = model
        self._batch = len(pictures)
        self._observe = observe
        self._prefix = prefix_tokens(model)
        self._projections = {paths[0]: (m, paths) for m, paths in projections(model).items()}
        self._entered: dict[nn.Module, torch.Size] = {}
        """The picture-shaped inputs of modules around blocks."""

    @contextmanager
    def looking(self) -> Iterator[None]:
        around = {
            self._model.get_submodule(path)
            for _, paths in self._projections.values()
            for path in _above(paths[0])
        }
        with ExitStack() as hooks:
            for module in around:
                handle = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                hooks.callback(handle.remove)
            for module in self._model.modules():
                if isinstance(module, STRIDED):
                    hooks.callback(module.register_forward_hook(self._passed).remove)
            hooks.enter_context(
                watched(self._model, dict(self._projections.values()), self._called)
            )
            yield

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = next(iter((*inputs, *named.values())), None)
        if isinstance(first, torch.Tensor) and first.ndim == 4 and len(first) == self._batch:
            self._entered[module] = first.shape
        else:
            self._entered.pop(module, None)

    def _passed(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if inputs[0].ndim == 4:
            self.grids.passed(module, _size(inputs[0]), _size(output))

    def _called(self, call: Call, activation: torch.Tensor) -> None:
        projection, paths = self._projections[call[0]]
        layout, why = self._layout(projection, paths[0], activation)
        tokens = as_tokens(projection, activation)
        self.calls.append(Seen(call, paths, tokens.shape[-1], layout, why))
        if layout:
            self._observe(call, tokens)

    def _layout(
        self, projection: nn.Module, path: str, activation: torch.Tensor
    ) -> tuple[TokenLayout | None, str]:
        shape = tuple(activation.shape)
        found: list[tuple[tuple[str, ...], Size]]
        if len(shape) not in (3, 4) or shape[0] != self._batch:
            return None, f"its input {shape} is no batch of tokens"
        if len(shape) == 4:
            size = shape[2:] if isinstance(projection, nn.Conv2d) else shape[1:3]
            found = [((), size)]
        else:
            found = self._fitting(path, shape[1])
        for prefix, size in found:
            cells = self.grids.at(size)
            if cells and size == (1, 1):
                return None, "it sees one token for the whole picture"
            if cells:
                self.grids.taken(size, cells)
                return _token_layout(prefix, size, cells), ""
        if shape[1] == 1:
            return None, "it sees one token for the whole picture"
        return None, f"its {shape[1]} tokens are no grid of patches that the model made"

    def _fitting(self, path: str, tokens: int) -> list[tuple[tuple[str, ...], Size]]:
        """Grids, the likeliest first, that leave all or none of the prefix tokens."""
        sizes: list[Size] = []
        for above in reversed(_above(path)):
            shape = self._entered.get(self._model.get_submodule(above))
            if shape is not None:
                # Rows and columns come second or last.
                sizes += [(shape[1], shape[2]), (shape[2], shape[3])]
        sizes += self.grids
        prefixes = dict.fromkeys([self._prefix, ()])
        return [
            (prefix, size)
            for size in sizes
            for prefix in prefixes
            if size[0] * size[1] + len(prefix) == tokens
        ]


def _above(path: str) -> list[str]:
    """Paths of the modules around a projection, outermost first."""
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _size(pictures: torch.Tensor) -> Size:
    return pictures.shape[-2], pictures.shape[-1]


def _token_layout(prefix: Sequence[str], size: Size, cells: Cells) -> TokenLayout:
    rows, columns = cells
    return TokenLayout(
        tuple(prefix), *size, rows.step, columns.step, top=rows.start, left=columns.start
    )
