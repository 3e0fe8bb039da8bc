"""Brute force by plain PyTorch and NumPy; shares no code with what it checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]


def save_random_model(name: str, path: Path, **arguments: Any) -> None:
    """Write weights of the timm model `name` that no trained file has."""
    torch.manual_seed(12345)
    model = timm.create_model(name, num_classes=0, **arguments)
    for key, value in model.state_dict().items():
        # timm starts blocks near the identity and tokens near zero; wide weights tell them apart.
        if value.dtype == torch.float32 and value.ndim > 1:
            value.normal_(0, 0.15 if "pos_embed" not in key else 0.5)
    save_file(model.state_dict(), path)


def load(name: str, checkpoint: Path, **arguments: Any) -> torch.nn.Module:
    """The timm model `name` with the weights of a file, in evaluation mode."""
    model: torch.nn.Module = timm.create_model(
        name,
        pretrained=True,
        num_classes=0,
        pretrained_cfg_overlay={"file": str(checkpoint)},
        **arguments,
    )
    return model.eval()


def activations(
    model: torch.nn.Module,
    files: Sequence[Path],
    batch_size: int,
    *,
    side: int | None = None,
) -> Iterator[dict[str, Floats]]:
    """Per batch of files: the input (B, T, C) of every `blocks.N.mlp.fc2`, by block."""
    asked = {"img_size": side} if side else {}
    config = resolve_model_data_config(model, args=asked)  # type: ignore[no-untyped-call]
    transform: Any = create_transform(**config, is_training=False)
    seen: dict[str, Floats] = {}

    def note(name: str) -> Callable[[torch.nn.Module, Any, Any], None]:
        return lambda _, inputs, output: seen.update({name: inputs[0].detach().numpy().copy()})

    blocks: Any = model.blocks
    for number, block in enumerate(blocks):
        block.mlp.fc2.register_forward_hook(note(f"blocks.{number}.mlp"))
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        pixels = torch.stack([transform(Image.open(file).convert("RGB")) for file in batch])
        with torch.no_grad():
            model(pixels)
        yield dict(seen)


def pooled(values: Floats, prefix: int, pooling: str) -> Halves:
    """Scores (B, C) of activations (B, T, C)."""
    wide = values.astype(np.float64)
    if pooling == "cls":
        scores = wide[:, 0]
    elif pooling == "max":
        scores = wide[:, prefix:].max(axis=1)
    else:
        scores = wide[:, prefix:].mean(axis=1)
    return np.asarray(scores).astype(np.float16)


def best(scores: Halves, k: int) -> npt.NDArray[np.int64]:
    """Rows (C, k) of the highest of scores (N, C), ties by lower row."""
    wide = scores.astype(np.float64)
    # A stable sort of the negated scores keeps equal ones in the order of their rows.
    return np.argsort(-wide, axis=0, kind="stable")[:k].T
