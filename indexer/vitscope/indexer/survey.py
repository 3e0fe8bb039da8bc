"""Which of timm's models can be indexed, and what their layers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from vitscope.indexer.errors import ModelError
from vitscope.indexer.grids import Size
from vitscope.indexer.layers import CapturedLayer, LeftOut, declared_layers, find_layers
from vitscope.indexer.model import build

FAMILIES = (
    *("vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos"),
    *("vision_transformer_sam", "deit", "eva", "beit", "coat", "convit", "pit"),
    *("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "twins", "tiny_vit"),
)
"""Files of timm that hold the families which vitscope is made for."""


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A model, as it would be indexed."""

    name: str
    family: str
    """Timm's file."""
    parameters: int
    input_size: Size
    layers: Sequence[CapturedLayer]
    """Empty where it is refused."""
    left_out: Sequence[LeftOut]
    refused: str
    """Why it cannot be indexed; empty where it can."""
    probed: bool
    """Whether random weights were probed, or shapes alone were looked at."""


def names(pattern: str = "*", *, families: bool = False) -> list[str]:
    """Architectures of timm whose names match a shell pattern, of `FAMILIES` alone if asked."""
    pattern = pattern.partition(".")[0]  # pretrained tags have no layers of their own
    pattern = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    found = timm.list_models(pattern)
    return [name for name in found if not families or family_of(name) in FAMILIES]


def family_of(name: str) -> str:
    """The file of timm that holds a model."""
    return str(timm.model_entrypoint(name).__module__.rpartition(".")[2])


def survey(name: str, *, img_size: Size | None = None, probe_up_to: int = 0) -> Surveyed:
    """Look at the architecture `name`.

    One of at most `probe_up_to` parameters is made with random weights and probed as an indexing
    run does; a larger one is made without weights, and the shapes of its forward are looked at.
    """
    parameters, input_size = 0, img_size or (0, 0)
    layers: Sequence[CapturedLayer] = ()
    left_out: Sequence[LeftOut] = ()
    refused, probed = "", False
    try:
        model = _bare(name, img_size)
        parameters = sum(each.numel() for each in model.parameters())
        config: Any = timm.get_pretrained_cfg(name)
        input_size = img_size or tuple(config.input_size[1:])
        layers, left_out = declared_layers(model, name, input_size)
        if probed := parameters <= probe_up_to:
            torch.manual_seed(0)
            layers, left_out = find_layers(_make(name, img_size), name, input_size)
    except ModelError as error:
        layers, refused = (), str(error)
    return Surveyed(
        name, family_of(name), parameters, input_size, layers, left_out, refused, probed
    )


def _bare(name: str, img_size: Size | None) -> nn.Module:
    """The model without memory for its weights, where timm can make it so."""
    try:
        with torch.device("meta"):
            return _make(name, img_size)
    except (RuntimeError, NotImplementedError):
        # Some models, and most of them before timm 1.0.23, compute while they are made.
        return _make(name, img_size)


def _make(name: str, img_size: Size | None) -> nn.Module:
    sized = {"img_size": img_size} if img_size else {}
    return build(name, pretrained=False, num_classes=0, **sized).eval()
